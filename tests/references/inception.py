"""Features and logits of pytorch-fid's Inception-v3, with weights from `formula.py`.

    pip install torch torchvision pytorch-fid safetensors
    python inception.py            # writes inception.safetensors
"""
from pathlib import Path

import numpy as np
import torch
from pytorch_fid import inception
from formula import uniform
from safetensors.torch import save_file


def fill(state):
    names = sorted(name for name in state if not name.endswith(("num_batches_tracked", "fc.bias")))
    for number, name in enumerate(names):
        tensor = state[name]
        u = uniform(number, tensor.numel())
        if tensor.dim() > 1:
            values = (2 * u - 1) * (6 / (tensor.numel() / tensor.shape[0])) ** 0.5
        elif name.endswith("bn.weight") or name.endswith("running_var"):
            values = u + 0.5
        else:
            values = u - 0.5
        tensor.copy_(torch.from_numpy(values.reshape(tensor.shape)))


# The network of the package, without downloading its weights.
inception.load_state_dict_from_url = lambda *_, **__: None
torch.nn.Module.load_state_dict, load = (lambda *_: None), torch.nn.Module.load_state_dict
network = inception.fid_inception_v3()
torch.nn.Module.load_state_dict = load
fill(network.state_dict())
inception.fid_inception_v3 = lambda: network
extractor = inception.InceptionV3([3]).eval()
network.eval()

shape = (2, 3, 20, 17)
images = torch.from_numpy(uniform(1000, int(np.prod(shape))).reshape(shape)).float()
with torch.no_grad():
    features = extractor(images)[0].flatten(1)
    # Without the bias, as is customary for the inception score.
    logits = features @ network.fc.weight.T
path = Path(__file__).with_suffix(".safetensors")
save_file({"features": features.contiguous(), "logits": logits.contiguous()}, path)
print(path, features.std().item(), logits.std().item())
