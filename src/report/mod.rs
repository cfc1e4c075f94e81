//! The result and its forms.
