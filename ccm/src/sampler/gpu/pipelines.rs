//! Compute pipelines: each kernel is compiled once. Also encodes dispatches into passes.

use ccm_shaders::{Kernel, Real};
use wgpu::{CommandEncoder, ComputePipeline};

use super::prepared::Dispatch;

/// The created pipelines. There are at most a dozen, so a list is fast enough.
#[derive(Default)]
pub(super) struct Pipelines(Vec<(Kernel, ComputePipeline)>);

impl Pipelines {
    /// The pipeline of a kernel that has already been created.
    #[expect(
        clippy::expect_used,
        reason = "`Prepared::new` creates the pipelines of all its dispatches first"
    )]
    pub(super) fn get(&self, kernel: Kernel) -> &ComputePipeline {
        let found = self.0.iter().find(|(created, _)| *created == kernel);
        &found.expect("the pipeline of every kernel is created before it is used").1
    }

    /// Creates the pipelines that are missing, in parallel where the platform has threads.
    pub(super) fn create(&mut self, gpu: &wgpu::Device, real: Real, kernels: impl Iterator<Item = Kernel>) {
        let mut missing = Vec::new();
        for kernel in kernels {
            if !missing.contains(&kernel) && self.0.iter().all(|(created, _)| *created != kernel) {
                missing.push(kernel);
            }
        }
        let create = |kernel: Kernel| (kernel, create_pipeline(gpu, kernel, real));
        #[cfg(not(target_arch = "wasm32"))]
        {
            use rayon::prelude::*;
            self.0.par_extend(missing.into_par_iter().map(create));
        }
        #[cfg(target_arch = "wasm32")]
        self.0.extend(missing.into_iter().map(create));
    }

    /// Encodes dispatches as one compute pass.
    pub(super) fn encode<'a>(
        &self,
        encoder: &mut CommandEncoder,
        dispatches: impl Iterator<Item = &'a Dispatch>,
    ) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let mut last: Option<&ComputePipeline> = None;
        for dispatch in dispatches {
            let pipeline = self.get(dispatch.kernel);
            if last != Some(pipeline) {
                pass.set_pipeline(pipeline);
                last = Some(pipeline);
            }
            pass.set_bind_group(0, &dispatch.operands, &[]);
            let [x, y, z] = dispatch.workgroups;
            pass.dispatch_workgroups(x, y, z);
        }
    }
}

fn create_pipeline(gpu: &wgpu::Device, kernel: Kernel, real: Real) -> ComputePipeline {
    let source = wgpu::ShaderSource::Wgsl(kernel.source(real).into());
    let name = Some(kernel.entry_point());
    let descriptor = wgpu::ShaderModuleDescriptor { label: name, source };
    // SAFETY: these are this project's own kernels. They compare every index with the sizes in their uniform, which
    // come from a checked plan, and their loops end. wgpu's own checks would keep native drivers from unrolling loops.
    let module =
        unsafe { gpu.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let descriptor = wgpu::ComputePipelineDescriptor {
        label: name,
        layout: None,
        module: &module,
        entry_point: name,
        compilation_options: wgpu::PipelineCompilationOptions {
            // Every kernel writes its workgroup memory before it reads it.
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    };
    gpu.create_compute_pipeline(&descriptor)
}
