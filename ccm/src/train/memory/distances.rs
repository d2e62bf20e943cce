//! Bytes of the networks inside distances, for one pair of images.

use super::SINGLE;
use super::activations::Activations;
use crate::method::distance::DistanceKind;
use crate::method::lpips::{MapOf, SIDE, Trunk};

/// Bytes of the indices that max pooling keeps for each value.
const INDEX: u64 = 8;

/// What a distance needs at its peak besides the images: the activations of its network, if it has one. `encoder` has the sizes of
/// the teacher's.
pub(super) fn of_distance(kind: DistanceKind, encoder: &Activations, [height, width]: [usize; 2]) -> u64 {
    match (kind, kind.trunk()) {
        (DistanceKind::TeacherFeatures, _) => encoder.of_features(),
        // Smaller images are enlarged.
        (_, Some(trunk)) if height.min(width) < SIDE => of_lpips(trunk, [SIDE; 2]),
        (_, Some(trunk)) => of_lpips(trunk, [height, width]),
        (_, None) => 0,
    }
}

/// LPIPS of images of this size. Of the student's image are kept: the trunk's input, the maps of all layers, and those of
/// convolutions also before ReLU. Of the target are kept the maps that are compared.
fn of_lpips(trunk: Trunk, size: [usize; 2]) -> u64 {
    let maps = trunk.maps(size);
    let bytes = |map: &MapOf| SINGLE * map.values as u64;
    let input = SINGLE * (3 * size[0] * size[1]) as u64;
    let indices = |map: &MapOf| if map.pooled { INDEX * map.values as u64 } else { 0 };
    // A difference of normalised maps is as large as the map.
    let difference = |map: &MapOf| if map.compared { bytes(map) } else { 0 };
    let before_relu = |map: &MapOf| if map.pooled { 0 } else { bytes(map) };
    let of_map = |map: &MapOf| bytes(map) + before_relu(map) + indices(map) + difference(map);
    let kept = input + maps.iter().map(of_map).sum::<u64>();

    // In the target's forward pass, its compared maps take the space of the differences, which come later.
    let before = maps.iter().map(bytes).scan(input, |before, map| Some(std::mem::replace(before, map)));
    let two_maps = maps.iter().map(bytes).zip(before).map(|(map, before)| map + before).max().unwrap_or(0);
    let forward = kept + two_maps;
    // The backward pass: the gradient of a layer's map and that of its input, beside what is kept of the layers before it.
    let (mut left, mut backward) = (kept, 0);
    for (place, map) in maps.iter().enumerate().rev() {
        let of_input = place.checked_sub(1).map_or(input, |place| bytes(&maps[place]));
        backward = backward.max(left + bytes(map) + of_input);
        left -= of_map(map);
    }
    forward.max(backward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lpips_keeps_the_maps_of_one_image() {
        // AlexNet at 224: 55, 27 and 13 positions a side.
        let maps = [64 * 55 * 55, 64 * 27 * 27, 192 * 27 * 27, 192 * 13 * 13, 384 * 13 * 13, 256 * 13 * 13];
        let found: Vec<usize> = Trunk::AlexNet.maps([224; 2]).iter().map(|map| map.values).collect();
        assert_eq!(found, [&maps[..], &maps[5..]].concat());
        // VGG16 at 224: 13 convolutions and 4 pools.
        let maps = Trunk::Vgg16.maps([224; 2]);
        assert_eq!((maps.len(), maps[0].values, maps[16].values), (17, 64 * 224 * 224, 512 * 14 * 14));
        assert_eq!(maps.iter().filter(|map| map.compared).count(), 5);
    }
}
