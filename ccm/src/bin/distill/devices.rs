//! The option `--device` of a run, which may name several devices.

use std::str::FromStr;

use clap::ValueEnum as _;

use crate::Failure;
use crate::device::{self, Choice, Opened};

/// The devices of a run: a kind of device, and their numbers if there are several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Devices {
    pub(crate) choice: Choice,
    numbers: Numbers,
}

/// Which devices of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Numbers {
    #[default]
    Best,
    All,
    These(Vec<usize>),
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected auto, vulkan, metal, dx12 or cpu, with numbers as in vulkan:0,1 or vulkan:all, or all";
        if text == "all" {
            return Ok(Self { choice: Choice::Auto, numbers: Numbers::All });
        }
        let (kind, numbers) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let choice = Choice::from_str(kind, false).map_err(|_| EXPECTED.to_owned())?;
        let numbers = match numbers {
            None => Numbers::Best,
            Some("all") => Numbers::All,
            Some(list) => {
                let numbers: Result<Vec<usize>, _> = list.split(',').map(str::parse).collect();
                let mut numbers = numbers.map_err(|_| EXPECTED.to_owned())?;
                let given = numbers.len();
                numbers.sort_unstable();
                numbers.dedup();
                if numbers.len() < given {
                    return Err("expected different numbers".into());
                }
                Numbers::These(numbers)
            }
        };
        Ok(Self { choice, numbers })
    }
}

impl Devices {
    /// Initializes the devices. There is at least one.
    pub(crate) fn open(&self) -> Result<Vec<Opened>, Failure> {
        match &self.numbers {
            Numbers::Best => Ok(vec![device::open(self.choice)?]),
            Numbers::All => device::open_several(self.choice, None),
            Numbers::These(numbers) => device::open_several(self.choice, Some(numbers)),
        }
    }

    /// Initializes the device of one of several processes on this machine: each takes the next of the devices, and begins again
    /// after the last.
    pub(crate) fn open_for(&self, place: usize) -> Result<Vec<Opened>, Failure> {
        let numbers = match &self.numbers {
            Numbers::These(numbers) => numbers.clone(),
            Numbers::Best | Numbers::All => (0..device::count(self.choice)).collect(),
        };
        match numbers[..] {
            [] => Ok(vec![device::open(self.choice)?]),
            _ => device::open_several(self.choice, Some(&[numbers[place % numbers.len()]])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_a_kind_and_numbers() {
        let parsed = |text: &str| text.parse::<Devices>().map(|devices| (devices.choice, devices.numbers));
        assert_eq!(parsed("vulkan"), Ok((Choice::Vulkan, Numbers::Best)));
        assert_eq!(parsed("all"), Ok((Choice::Auto, Numbers::All)));
        assert_eq!(parsed("metal:all"), Ok((Choice::Metal, Numbers::All)));
        assert_eq!(parsed("vulkan:2,0"), Ok((Choice::Vulkan, Numbers::These(vec![0, 2]))));
        for wrong in ["cuda", "vulkan:", "vulkan:a", "vulkan:1,", "vulkan:1,1", ""] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
