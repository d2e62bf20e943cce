// Feature maps and products in single precision.
alias real4 = vec4<f32>;
