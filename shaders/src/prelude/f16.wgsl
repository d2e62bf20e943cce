// Feature maps and products in half precision.
enable f16;
alias real4 = vec4<f16>;
