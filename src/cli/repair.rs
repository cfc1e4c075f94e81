//! Flags that add arms in kept rounding to an audit.

use std::str::FromStr;

use clap::Args;

use crate::error::{Error, Result};
use crate::quant::Share;

/// What `--keep auto` chooses from.
const CHOICE: [f64; 6] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Whether and how much of each update is kept.
#[derive(Clone, Debug, Args)]
pub(super) struct RepairArgs {
    /// Also run every unlearned model in kept rounding, beside each 4-bit precision: rounding that moves a few codes so that
    /// the update from the target survives. On a pretrained model it may cost much of the retain score: then
    /// `undertext audit --calibrate`
    #[arg(long)]
    repair: bool,

    /// Share of the update that --repair keeps, 0 to 1; or auto: the smallest of 0.5, 0.6 ... 1 whose forget metrics lie within
    /// the intervals of the model at full precision [default: 0.9; 0.825 where --calibrate rounds]
    #[arg(long, value_name = "SHARE", requires = "repair")]
    keep: Option<Keep>,

    /// Dose and response: run kept rounding at each of these shares
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    dose: Vec<Share>,
}

impl RepairArgs {
    /// All shares to run, ascending, each once, as a plan names them; and whether one of them is to be chosen.
    pub(super) fn doses(&self) -> (Vec<String>, bool) {
        let mut doses = self.dose.clone();
        if self.repair {
            match self.keep {
                None => doses.push(Share::USUAL),
                Some(Keep::Share(share)) => doses.push(share),
                Some(Keep::Auto) => doses.extend(CHOICE.into_iter().filter_map(Share::new)),
            }
        }
        doses.sort_unstable();
        doses.dedup();
        let named = doses.iter().map(ToString::to_string).collect();
        (named, self.repair && self.keep == Some(Keep::Auto))
    }

    /// The share that rounding on a text is to keep.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] for `--keep auto`: only the arms in kept rounding are run at several shares.
    pub(super) fn calibrated_share(&self) -> Result<Share> {
        match self.keep {
            None => Ok(Share::USUAL_MATCHED),
            Some(Keep::Share(share)) => Ok(share),
            Some(Keep::Auto) => Err(Error::Flag {
                flag: "--keep",
                found: "auto with --calibrate".to_owned(),
                expected: "a share from 0 to 1".to_owned(),
            }),
        }
    }
}

/// The value of `--keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Share(Share),
    Auto,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Share).map_err(|expected| format!("{expected}, or auto")),
        }
    }
}
