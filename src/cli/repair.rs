//! Flags that add arms in kept rounding to an audit.

use std::str::FromStr;

use clap::Args;

use crate::quant::Share;

/// What `--keep auto` chooses from.
const CHOICE: [f64; 8] = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0];

/// The same where `--calibrate` rounds: fewer, since each is a checkpoint to make.
const CHOICE_MATCHED: [f64; 4] = [0.75, 0.8, 0.85, 0.9];

/// Whether and how much of each update is kept.
#[derive(Clone, Debug, Args)]
pub(super) struct RepairArgs {
    /// Also run every unlearned model in kept rounding, beside each 4-bit precision: rounding that moves a few codes so that
    /// the update from the target survives. On a pretrained model it may cost much of the retain score: then
    /// `undertext audit --calibrate`
    #[arg(long)]
    repair: bool,

    /// Share of the update that --repair keeps, 0 to 1; or auto: the smallest of several whose forget metrics lie within the
    /// intervals of the model at full precision: of 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9 and 1, and of files that --calibrate
    /// makes for 0.75, 0.8, 0.85 and 0.9 [default: 0.9; 0.85 where --calibrate rounds]
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

    /// The shares that rounding on a text is to keep, each in a file of its own; ascending.
    pub(super) fn calibrated_shares(&self) -> Vec<Share> {
        match self.keep {
            None => vec![Share::USUAL_MATCHED],
            Some(Keep::Share(share)) => vec![share],
            Some(Keep::Auto) => CHOICE_MATCHED.into_iter().filter_map(Share::new).collect(),
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

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Share).map_err(|expected| format!("{expected}, or auto")),
        }
    }
}
