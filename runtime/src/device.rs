//! Where a model runs: what may be asked for, and what that comes to on this machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use outcrop_models::kernels::{self, EmulatorOptions};
use outcrop_models::{CpuStream, ElementType, Stream};

use crate::{Dtype, Error};

/// Where a model runs.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The first GPU if there is one that can be used, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs: a copy of the model on each, and the work of a call shared out among them.
    Cuda(Gpus),
    /// The kernels of the GPU on the CPU, for those who write them: slow, and strict.
    Emulator(EmulatorOptions),
}

/// Which GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// All that the driver sees.
    All,
    /// Those with these numbers.
    Some(Vec<usize>),
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no device; it is auto, cpu, cuda, cuda:0, cuda:0,1 or cuda:all")]
pub struct ParseDeviceError {
    text: String,
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    /// `auto`, `cpu`, `cuda` (the first GPU), `cuda:1`, `cuda:0,1`, `cuda:all`, or `emulator:` and the path of its library.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseDeviceError { text: text.to_owned() };
        match text.split_once(':') {
            None => match text {
                "auto" => Ok(Self::Auto),
                "cpu" => Ok(Self::Cpu),
                "cuda" => Ok(Self::Cuda(Gpus::Some(vec![0]))),
                _ => Err(refused()),
            },
            Some(("cuda", "all")) => Ok(Self::Cuda(Gpus::All)),
            Some(("cuda", list)) => {
                let numbers: Vec<usize> =
                    list.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| refused())?;
                let mut sorted = numbers.clone();
                sorted.sort_unstable();
                sorted.dedup();
                if sorted.len() == numbers.len() {
                    Ok(Self::Cuda(Gpus::Some(numbers)))
                } else {
                    Err(refused())
                }
            }
            Some(("emulator", path)) if !path.is_empty() => {
                Ok(Self::Emulator(EmulatorOptions::new(PathBuf::from(path))))
            }
            Some(_) => Err(refused()),
        }
    }
}

/// What was chosen, and where it was left to us, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// The devices, such as `cpu` or `cuda:0 (NVIDIA H200)`.
    pub devices: Vec<String>,
    /// Why it is not a GPU though [`Device::Auto`] would have taken one.
    pub because: Option<String>,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.devices.join(", "))?;
        match &self.because {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl Device {
    /// A stream on the first device that this comes to, for work without a model. On a GPU its operands are of type `dtype`, f16 if that
    /// is left open; the CPU has `threads` threads, or as many as the process may use.
    pub fn open(&self, dtype: Dtype, threads: Option<usize>) -> Result<(Stream, DeviceChoice), Error> {
        let host = CpuStream::new(threads)?;
        let (mut streams, mut choice) = match (dtype, self) {
            // Reason enough for the CPU, if the choice is ours.
            (Dtype::F32, Self::Auto) => streams(&Self::Cpu, ElementType::F32, &host)?,
            _ => streams(self, dtype.element_type().unwrap_or(ElementType::F16), &host)?,
        };
        choice.devices.truncate(1);
        Ok((streams.swap_remove(0), choice))
    }
}

/// Streams on what `device` comes to, with operands of `operand_type` on GPUs.
pub(crate) fn streams(
    device: &Device,
    operand_type: ElementType,
    host: &Arc<CpuStream>,
) -> Result<(Vec<Stream>, DeviceChoice), Error> {
    let cpu = |because| {
        let choice = DeviceChoice { devices: vec!["cpu".to_owned()], because };
        (vec![Stream::Cpu(Arc::clone(host))], choice)
    };
    match device {
        Device::Cpu => Ok(cpu(None)),
        Device::Cuda(gpus) => cuda(gpus, operand_type),
        // Opened and tried: a GPU that cannot be used is no reason to fail if nobody has asked for it.
        Device::Auto => match cuda(&Gpus::Some(vec![0]), operand_type) {
            Ok(found) => Ok(found),
            Err(error) => {
                let error = error.to_string();
                // What is wrong; the remedy behind it is for those who asked for a GPU.
                Ok(cpu(Some(error.split([';', '\n']).next().unwrap_or_default().to_owned())))
            }
        },
        Device::Emulator(options) => {
            let open = |_| Stream::emulator(options.clone(), operand_type);
            let streams = (0..options.num_devices.max(1)).map(open).collect::<Result<Vec<_>, _>>()?;
            let devices = (0..streams.len()).map(|i| format!("emulator:{i}")).collect();
            Ok((streams, DeviceChoice { devices, because: None }))
        }
    }
}

fn cuda(gpus: &Gpus, operand_type: ElementType) -> Result<(Vec<Stream>, DeviceChoice), Error> {
    let ordinals = match gpus {
        Gpus::Some(ordinals) => ordinals.clone(),
        Gpus::All => (0..kernels::devices()?.len()).collect(),
    };
    let mut streams = Vec::new();
    let mut devices = Vec::new();
    for ordinal in ordinals {
        let stream = Stream::cuda(ordinal, operand_type)?;
        // A GPU without a compiler for its kernels is found out here and not by the first call.
        stream.check()?;
        let name = stream.properties().map_or("", |properties| properties.name.as_str());
        devices.push(format!("cuda:{ordinal} ({name})"));
        streams.push(stream);
    }
    Ok((streams, DeviceChoice { devices, because: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_documented() {
        let gpus = |text: &str| match text.parse() {
            Ok(Device::Cuda(gpus)) => gpus,
            other => panic!("{text}: {other:?}"),
        };
        assert!(matches!("auto".parse(), Ok(Device::Auto)));
        assert!(matches!("cpu".parse(), Ok(Device::Cpu)));
        assert_eq!(gpus("cuda"), Gpus::Some(vec![0]));
        assert_eq!(gpus("cuda:3"), Gpus::Some(vec![3]));
        assert_eq!(gpus("cuda:1,0"), Gpus::Some(vec![1, 0]));
        assert_eq!(gpus("cuda:all"), Gpus::All);
        assert!(matches!("emulator:kernels.so".parse(), Ok(Device::Emulator(_))));
        for text in ["", "gpu", "cuda:", "cuda:0,0", "cuda:x", "cuda:0,", "cpu:0", "emulator", "emulator:"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("cuda:all"), "{error}");
        }
    }
}
