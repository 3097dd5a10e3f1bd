//! What host code and kernels agree on: batch-dependent numbers and parameter blocks.

use crate::device::Device;
use crate::driver::TensorMap;

/// A number that a batch decides, such as its rows.
///
/// The host knows it. On CUDA kernels read it from device memory, where earlier kernels may have put it, and launches are laid out
/// for the largest number it can be: so a recorded launch serves every batch.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    value: usize,
    bound: usize,
    address: u64,
}

impl Size {
    /// A number in device memory at `address`, at most `bound`.
    pub(crate) fn in_device_memory(value: usize, bound: usize, address: u64) -> Self {
        Self { value, bound, address }
    }

    /// The number.
    pub fn get(self) -> usize {
        self.value
    }

    /// The largest number it can be where launches are laid out.
    pub(crate) fn bound(self) -> usize {
        self.bound
    }

    /// As kernels take it.
    pub(crate) fn on_device(self) -> DeviceSize {
        DeviceSize { address: self.address, bound: narrow(self.bound), unused: 0 }
    }
}

/// A number that no batch changes.
impl From<usize> for Size {
    fn from(value: usize) -> Self {
        Self { value, bound: value, address: 0 }
    }
}

/// `Size` of hardware.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DeviceSize {
    address: u64,
    bound: u32,
    unused: u32,
}

/// A length or index as kernels take it. Device memory holds fewer rows than 32 bits count, so nothing is ever cut off.
pub(crate) fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A type that a parameter block may hold.
pub(crate) trait Field: Copy {
    /// The type's name in a `.cu` file.
    const NAME: &'static str;
}

impl Field for u32 {
    const NAME: &'static str = "u32";
}

impl Field for u64 {
    const NAME: &'static str = "u64";
}

impl Field for f32 {
    const NAME: &'static str = "float";
}

impl Field for DeviceSize {
    const NAME: &'static str = "Size";
}

/// The last argument of a kernel, passed by value.
///
/// # Safety
/// The type is `repr(C)`, and [`ParameterBlock::assertions`] hold of the struct of the same name in the kernel's file.
pub(crate) unsafe trait ParameterBlock: Copy {
    /// C++ assertions that the file's struct has this layout; compiled with the kernel.
    fn assertions() -> String;
}

/// Declares a parameter block, whose twin stands in the kernel's `.cu` file under the same name.
///
/// Both sides are held to one layout: by assertions compiled with the kernel, and here by one against padding.
macro_rules! parameter_block {
    ($(#[$attribute:meta])* $name:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(super) struct $name {
            $($(#[$field_attribute])* pub(super) $field: $type,)*
        }

        const _: () = assert!(
            size_of::<$name>() == 0 $(+ size_of::<$type>())*,
            concat!(stringify!($name), " has padding: order its fields by size")
        );

        // SAFETY: `repr(C)`, and the assertions name every field.
        unsafe impl $crate::params::ParameterBlock for $name {
            fn assertions() -> String {
                let name = stringify!($name);
                let mut text = format!("static_assert(sizeof({name}) == {}, \"{name}: size\");\n", size_of::<$name>());
                $(
                    let (field, offset) = (stringify!($field), std::mem::offset_of!($name, $field));
                    let cpp = <$type as $crate::params::Field>::NAME;
                    text += &format!(
                        "static_assert(offset_of({name}, {field}) == {offset}, \"{name}::{field}: offset\");\n\
                         static_assert(is_same<decltype({name}::{field}), {cpp}>::value, \"{name}::{field}: type\");\n"
                    );
                )*
                text
            }
        }
    };
}
pub(crate) use parameter_block;

/// A kernel's file, as the compilers see it.
pub(crate) struct Source {
    /// Path below `kernels/src`.
    pub(crate) path: &'static str,
    /// Its text.
    pub(crate) text: &'static str,
    /// [`ParameterBlock::assertions`] of every block in it.
    pub(crate) assertions: fn() -> String,
}

impl Source {
    /// Whether the file uses what Hopper alone has: then its name says so.
    pub(crate) fn is_hopper(&self) -> bool {
        self.path.ends_with("_hopper.cu")
    }
}

/// One instance of a kernel template, and how its launch looks whatever the batch.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) source: &'static Source,
    /// C++ expression that names it: `rms_norm<f16, 4>`.
    pub(crate) name: String,
    pub(crate) threads: u32,
    /// Blocks of a cluster; 1 where blocks know nothing of one another.
    pub(crate) cluster: u32,
    /// Dynamic shared memory.
    pub(crate) shared_bytes: u32,
    /// Blocks that a multiprocessor is to hold at the same time: how many a launch asks for at most.
    pub(crate) blocks_per_sm: u32,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.path)
    }
}

impl Instance {
    /// Launches with `pointers`, outputs first, and the parameter block; as many blocks as there are `items` of work, or as the
    /// device holds: kernels loop over their items.
    pub(crate) fn launch(
        &self,
        device: &Device,
        items: usize,
        pointers: &[u64],
        params: &impl ParameterBlock,
    ) -> Result<(), crate::Error> {
        device.launch(self, items, &[], pointers, params)
    }

    /// The same with tensor maps, the first arguments; and a cluster of blocks for each of the `items`.
    pub(crate) fn launch_mapped(
        &self,
        device: &Device,
        items: usize,
        maps: &[TensorMap],
        pointers: &[u64],
        params: &impl ParameterBlock,
    ) -> Result<(), crate::Error> {
        device.launch(self, items, maps, pointers, params)
    }
}
