//! Copies between tensors and host memory.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The values of a tensor of any floating-point type, as `f32`.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    #[expect(clippy::expect_used, reason = "the line before makes it f32")]
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32")
}

/// A tensor of one number per image, `[B]`.
pub fn per_image(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// A tensor of labels, `[B]`.
pub fn labels_tensor(labels: &[u32], device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
    let count = labels.len();
    Tensor::from_data(TensorData::new(labels, [count]), device)
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    #[test]
    fn values_of_any_floating_type_come_to_the_host() {
        let values = [0.5f32, -2.0, 3.25, 0.0];
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let tensor = Tensor::<1>::from_data(values, &Device::flex()).cast(dtype);
            assert_eq!(to_host(tensor), values, "{dtype:?}");
        }
    }
}
