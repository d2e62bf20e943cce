//! Compares the interface of every kernel with its source, as naga reads it.
//!
//! Other tests introduce each kind of difference in a copy of the source or of the interface; it must be reported.
#![allow(clippy::expect_used, reason = "a test that does not find what it changes in a source has failed")]

use std::collections::BTreeSet;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Expression, Literal, Module, Scalar, StorageAccess, TypeInner};

use crate::buffers::{Access, Element};
use crate::interface::{Constant, Interface};
use crate::uniform::{self, Uniform};
use crate::{Kernel, RGBA, Real, Tile, Weights};

/// A source and what the host assumes about it.
#[derive(Clone)]
struct Case {
    name: String,
    source: String,
    interface: Interface,
    real: Real,
    weights: Weights,
}

fn kernels() -> Vec<Kernel> {
    let weights = [
        Weights::F32,
        Weights::F16,
        Weights::Q8,
        #[cfg(feature = "text")]
        Weights::Q4,
    ];
    let tiles = [Tile::Wide, Tile::Narrow, Tile::Direct];
    let convolutions = weights.iter().flat_map(|w| tiles.iter().map(|tile| Kernel::Conv(*w, *tile)));
    let others = [
        Kernel::Moments,
        Kernel::Normalize,
        Kernel::Attention,
        Kernel::AttentionDirect,
        Kernel::Pool,
        #[cfg(feature = "text")]
        Kernel::LayerNorm,
        #[cfg(feature = "text")]
        Kernel::Pointwise,
        #[cfg(feature = "text")]
        Kernel::Copy,
        Kernel::Advance,
    ];
    convolutions.chain(others).collect()
}

/// Every variant of every kernel, and the kernel that draws.
fn cases() -> Vec<Case> {
    let reals = [Real::F32, Real::F16];
    let variants = reals.iter().flat_map(|real| kernels().into_iter().map(|kernel| (*real, kernel)));
    let compute = variants.map(|(real, kernel)| Case {
        name: format!("{kernel:?} in {real:?}"),
        source: kernel.source(real),
        interface: kernel.interface(),
        real,
        weights: if let Kernel::Conv(weights, _) = kernel { weights } else { Weights::F32 },
    });
    let draw = Case {
        name: "rgba".into(),
        source: RGBA.into(),
        interface: Interface::rgba(),
        real: Real::F32,
        weights: Weights::F32,
    };
    compute.chain([draw]).collect()
}

fn parse(source: &str) -> Result<Module, String> {
    naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))
}

fn validate(source: &str) -> Result<(Module, ModuleInfo), String> {
    let module = parse(source)?;
    let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
    let info = info.map_err(|error| error.emit_to_string(source))?;
    Ok((module, info))
}

/// A scalar or a vector as WGSL writes it.
fn type_name(inner: &TypeInner) -> String {
    let scalar = |scalar: Scalar| match scalar {
        Scalar::U32 => "u32".to_owned(),
        Scalar::F32 => "f32".to_owned(),
        Scalar::F16 => "f16".to_owned(),
        other => format!("{other:?}"),
    };
    match *inner {
        TypeInner::Scalar(of) => scalar(of),
        TypeInner::Vector { size, scalar: of } => format!("vec{}<{}>", size as u8, scalar(of)),
        ref other => format!("{other:?}"),
    }
}

impl Case {
    fn element(&self, element: Element) -> &'static str {
        match (element, self.real, self.weights) {
            (Element::F32, ..) => "f32",
            (Element::F32x4, ..) | (Element::Real4, Real::F32, _) => "vec4<f32>",
            (Element::Real4, Real::F16, _) => "vec4<f16>",
            (Element::Weight4, _, Weights::F32) => "vec4<f32>",
            (Element::Weight4, _, Weights::F16) => "vec2<u32>",
            (Element::Weight4, ..) => "u32",
            (Element::Scale4, _, Weights::Q8) => "vec4<f32>",
            (Element::Scale4, ..) => "vec2<u32>",
        }
    }

    /// The differences between source and interface, one per line.
    fn differences(&self) -> Vec<String> {
        let module = parse(&self.source).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut found = Vec::new();
        self.compare_entry_points(&module, &mut found);
        self.compare_uniform(&module, &mut found);
        self.compare_buffers(&module, &mut found);
        self.compare_constants(&module, &mut found);
        found
    }

    fn compare_entry_points(&self, module: &Module, found: &mut Vec<String>) {
        for name in &self.interface.entry_points {
            let size = module.entry_points.iter().find(|e| e.name == *name).map(|e| e.workgroup_size);
            if size != Some(self.interface.workgroup_size) {
                let expected = self.interface.workgroup_size;
                found.push(format!("{name}: workgroup of {size:?} in the source, {expected:?} on the host"));
            }
        }
    }

    fn compare_uniform(&self, module: &Module, found: &mut Vec<String>) {
        let uniforms = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::Uniform);
        let uniforms: Vec<_> = uniforms.map(|(_, variable)| variable).collect();
        let [variable] = uniforms[..] else {
            return found.push(format!("expected one uniform, found {}", uniforms.len()));
        };
        let place = variable.binding.map(|place| (place.group, place.binding));
        if place != Some((0, 0)) {
            found.push(format!("uniform: binding {place:?} in the source, (0, 0) on the host"));
        }
        let uniform = &module.types[variable.ty];
        let expected = self.interface.uniform;
        if uniform.name.as_deref() != Some(expected) {
            found.push(format!("uniform: {:?} in the source, {expected} on the host", uniform.name));
        }
        let TypeInner::Struct { members, span } = &uniform.inner else {
            return found.push(format!("uniform {expected}: not a struct"));
        };
        if *span as usize != self.interface.uniform_size {
            let size = self.interface.uniform_size;
            found.push(format!("{expected}: {span} bytes in the source, {size} on the host"));
        }
        let in_source = members.iter().map(|member| {
            let name = member.name.clone().unwrap_or_default();
            (name, member.offset as usize, type_name(&module.types[member.ty].inner))
        });
        let on_host = self.interface.fields.iter();
        let on_host = on_host.map(|field| (field.name.to_owned(), field.offset, field.scalar.to_owned()));
        let (in_source, on_host): (Vec<_>, Vec<_>) = (in_source.collect(), on_host.collect());
        for i in 0..in_source.len().max(on_host.len()) {
            if in_source.get(i) != on_host.get(i) {
                let (source, host) = (in_source.get(i), on_host.get(i));
                found.push(format!("{expected}, field {i}: {source:?} in the source, {host:?} on the host"));
            }
        }
    }

    fn compare_buffers(&self, module: &Module, found: &mut Vec<String>) {
        for (i, buffer) in self.interface.buffers.iter().enumerate() {
            let number = i as u32 + 1;
            let bound = module.global_variables.iter().map(|(_, variable)| variable).find(|variable| {
                variable.binding.is_some_and(|place| (place.group, place.binding) == (0, number))
            });
            let in_source = bound.map(|variable| {
                let access = match variable.space {
                    AddressSpace::Storage { access } if access == StorageAccess::LOAD => Some(Access::Read),
                    AddressSpace::Storage { access }
                        if access == StorageAccess::LOAD | StorageAccess::STORE =>
                    {
                        Some(Access::ReadWrite)
                    }
                    _ => None,
                };
                let element = match module.types[variable.ty].inner {
                    TypeInner::Array { base, .. } => type_name(&module.types[base].inner),
                    ref other => format!("{other:?}"),
                };
                (variable.name.clone().unwrap_or_default(), access, element)
            });
            let on_host =
                (buffer.name.to_owned(), Some(buffer.access), self.element(buffer.element).to_owned());
            if in_source.as_ref() != Some(&on_host) {
                found.push(format!("binding {number}: {in_source:?} in the source, {on_host:?} on the host"));
            }
        }
    }

    fn compare_constants(&self, module: &Module, found: &mut Vec<String>) {
        for (name, on_host) in &self.interface.constants {
            let constant =
                module.constants.iter().find(|(_, constant)| constant.name.as_deref() == Some(name));
            let in_source =
                constant.and_then(|(_, constant)| match module.global_expressions[constant.init] {
                    Expression::Literal(Literal::U32(value)) => Some(Constant::U32(value)),
                    Expression::Literal(Literal::F32(value)) => Some(Constant::F32(value)),
                    _ => None,
                });
            if in_source != Some(*on_host) {
                found.push(format!("{name}: {in_source:?} in the source, {on_host:?} on the host"));
            }
        }
    }

    /// A copy of the case with another source, which must differ.
    #[track_caller]
    fn with_source(&self, source: String) -> Self {
        assert_ne!(source, self.source, "{}: the source is unchanged", self.name);
        Self { source, ..self.clone() }
    }

    /// A copy of the case with a modified interface.
    fn with_interface(&self, change: impl FnOnce(&mut Interface)) -> Self {
        let mut interface = self.interface.clone();
        change(&mut interface);
        Self { interface, ..self.clone() }
    }

    /// Asserts that the differences are reported, in lines that name `what`.
    #[track_caller]
    fn assert_reported(&self, what: &str) {
        let found = self.differences();
        assert!(found.iter().any(|line| line.contains(what)), "{}, {what}: reported {found:?}", self.name);
    }
}

/// `text` with `a` and `b`, which must each occur once, swapped.
#[track_caller]
fn swapped(text: &str, a: &str, b: &str) -> String {
    for part in [a, b] {
        assert_eq!(text.matches(part).count(), 1, "`{part}` in {text}");
    }
    text.replace(a, "\0").replace(b, a).replace('\0', b)
}

#[test]
fn the_host_agrees_with_the_source_of_every_kernel() {
    for case in cases() {
        assert_eq!(case.differences(), Vec::<String>::new(), "{}", case.name);
    }
}

#[test]
fn every_kernel_is_valid_and_uses_the_bindings_that_the_host_binds() {
    for case in cases() {
        let (module, info) = validate(&case.source).unwrap_or_else(|error| panic!("{}\n{error}", case.name));
        let mut used = BTreeSet::new();
        for (i, entry_point) in module.entry_points.iter().enumerate() {
            if case.interface.entry_points.contains(&entry_point.name.as_str()) {
                let uses = info.get_entry_point(i);
                let variables = module.global_variables.iter();
                let variables = variables.filter(|(handle, _)| !uses[*handle].is_empty());
                used.extend(variables.filter_map(|(_, variable)| Some(variable.binding?.binding)));
            }
        }
        let bound: BTreeSet<u32> = (0..=case.interface.buffers.len() as u32).collect();
        assert_eq!(used, bound, "{}: bindings that the kernel uses, and that the host binds", case.name);
    }
}

#[test]
fn fields_swapped_in_the_source_are_reported() {
    for case in cases() {
        let declaration = |field: &uniform::Field| format!("{}:{},", field.name, field.scalar);
        for pair in case.interface.fields.windows(2) {
            let [a, b] = [declaration(&pair[0]), declaration(&pair[1])];
            let source = case.source.replace(&format!("{a}{b}"), &format!("{b}{a}"));
            case.with_source(source).assert_reported(pair[0].name);
        }
    }
}

#[test]
fn fields_swapped_on_the_host_are_reported() {
    uniform::uniforms! {
        /// [`uniform::Pool`] with height and width swapped.
        struct Pool {
            /// Second field in WGSL.
            width: u32,
            /// First field in WGSL.
            height: u32,
            /// Unchanged.
            blocks: u32,
            /// Unchanged.
            count: u32,
        }
        /// [`uniform::Attention`] with a field of another type.
        struct Attention {
            /// Unchanged.
            positions: u32,
            /// Unchanged.
            heads: u32,
            /// Unchanged.
            blocks: u32,
            /// `f32` in WGSL.
            scale: u32,
        }
    }
    let cases = cases();
    let case = |uniform: &str| cases.iter().find(|case| case.interface.uniform == uniform).expect("a kernel");
    case(Pool::NAME).with_interface(|i| i.fields = Pool::FIELDS.to_vec()).assert_reported("height");
    case(Attention::NAME).with_interface(|i| i.fields = Attention::FIELDS.to_vec()).assert_reported("scale");
    for case in &cases {
        // What the macro gives for a struct whose fields are in another order: the names move, the offsets do not.
        for i in 1..case.interface.fields.len() {
            let swapped = case.with_interface(|interface| {
                let [a, b] = [interface.fields[i - 1], interface.fields[i]];
                interface.fields[i - 1] = uniform::Field { offset: a.offset, ..b };
                interface.fields[i] = uniform::Field { offset: b.offset, ..a };
            });
            swapped.assert_reported(case.interface.fields[i].name);
        }
        case.with_interface(|i| i.fields.truncate(i.fields.len() - 1)).assert_reported("field");
        case.with_interface(|i| i.uniform_size += 4).assert_reported("bytes");
    }
}

#[test]
fn a_field_added_to_the_source_is_reported() {
    for case in cases() {
        let name = case.interface.uniform;
        let source = case.source.replace(&format!("struct {name}{{"), &format!("struct {name}{{added:u32,"));
        case.with_source(source).assert_reported("added");
    }
}

#[test]
fn constants_changed_on_one_side_are_reported() {
    for case in cases() {
        for (i, (name, value)) in case.interface.constants.iter().enumerate() {
            let start = case.source.find(&format!("const {name}:"));
            let start = start.unwrap_or_else(|| panic!("{}: no constant {name}", case.name));
            let line = case.source[start..].split_inclusive(';').next().expect("an end");
            let (declaration, expression) = line.split_once('=').expect("a value");
            let expression = expression.trim_end_matches(';');
            let doubled = format!("{declaration}=2*({expression});");
            case.with_source(case.source.replace(line, &doubled)).assert_reported(name);
            let other = match value {
                Constant::U32(value) => Constant::U32(value + 1),
                Constant::F32(value) => Constant::F32(value * 2.0),
            };
            case.with_interface(|interface| interface.constants[i].1 = other).assert_reported(name);
        }
    }
}

#[test]
fn bindings_changed_on_one_side_are_reported() {
    for case in cases() {
        let buffers = &case.interface.buffers;
        // The uniform is binding 0, so every pair of neighbours has a number of its own.
        for number in 1..=buffers.len() {
            let [a, b] = [number - 1, number].map(|number| format!("@binding({number})"));
            let swapped = case.with_source(swapped(&case.source, &a, &b));
            swapped.assert_reported(&format!("binding {number}"));
        }
        for (i, buffer) in buffers.iter().enumerate() {
            let what = format!("binding {}", i + 1);
            let [read, write] =
                ["read", "read_write"].map(|access| format!("<storage,{access}>{}:", buffer.name));
            let (from, to) = match buffer.access {
                Access::Read => (read, write),
                Access::ReadWrite => (write, read),
            };
            case.with_source(case.source.replace(&from, &to)).assert_reported(&what);
            let element = case.source.split_once(&format!(">{}:array<", buffer.name)).expect("an array").1;
            let element = element.split_once(">;").expect("a line").0;
            let [from, to] = [element, "vec2<i32>"].map(|e| format!(">{}:array<{e}>;", buffer.name));
            let other = case.with_source(case.source.replace(&from, &to));
            // Most kernels compute with the elements, so that the source is not valid either.
            if parse(&other.source).is_ok() {
                other.assert_reported(&what);
            }
            case.with_interface(|interface| {
                interface.buffers[i].element = match buffer.element {
                    Element::F32 => Element::F32x4,
                    Element::F32x4 | Element::Real4 | Element::Weight4 | Element::Scale4 => Element::F32,
                }
            })
            .assert_reported(&what);
            case.with_interface(|interface| {
                interface.buffers[i].access = match buffer.access {
                    Access::Read => Access::ReadWrite,
                    Access::ReadWrite => Access::Read,
                }
            })
            .assert_reported(&what);
            if i > 0 {
                case.with_interface(|interface| interface.buffers.swap(i - 1, i)).assert_reported(&what);
            }
        }
    }
}

#[test]
fn workgroups_of_another_size_are_reported() {
    for case in cases().into_iter().filter(|case| case.interface.workgroup_size != [0; 3]) {
        let entry = case.interface.entry_points[0];
        let function = case.source.find(&format!("fn {entry}(")).expect("a function");
        let (before, after) = case.source.split_at(function);
        let start = before.rfind("@compute").expect("attributes");
        assert!(before[start..].starts_with("@compute@workgroup_size("), "{}", case.name);
        let source = format!("{}@compute@workgroup_size(2,2,2){after}", &before[..start]);
        case.with_source(source).assert_reported(entry);
    }
}

#[test]
fn workgroup_memory_of_every_kernel_fits_any_adapter() {
    /// The smallest `maxComputeWorkgroupStorageSize` that WebGPU allows.
    const MOST: u32 = 16 * 1024;
    for case in cases() {
        let (module, _) = validate(&case.source).unwrap_or_else(|error| panic!("{}\n{error}", case.name));
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|(_, variable)| layouter[variable.ty].size).sum();
        assert!(bytes <= MOST, "{}: {bytes} bytes", case.name);
    }
}
