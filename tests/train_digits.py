"""Two epochs on scikit-learn's digits. Knows nothing but torch, scikit-learn and the model.py of an artefact folder.

    python train_digits.py FOLDER OPTIMISER

Writes trained.pt (a state dict) and outputs.pt (test images, and the logits of the trained network) into the working
folder, and prints the share of test images that are recognised.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.datasets import load_digits

sys.path.insert(0, sys.argv[1])
import model

assert "fxprune" not in sys.modules
torch.set_num_threads(1)
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, test = order[360:], order[:360]

network = getattr(model, model.__all__[0])()
network.load_state_dict(load_file(f"{sys.argv[1]}/model.safetensors"))
if sys.argv[2] == "sgd":
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
else:
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
for _ in range(2):
    for batch in train[torch.randperm(len(train))].split(32):
        optimiser.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimiser.step()
network.eval()
with torch.no_grad():
    logits = network(images[test])
torch.save(network.state_dict(), "trained.pt")
torch.save({"images": images[test], "logits": logits}, "outputs.pt")
print((logits.argmax(1) == labels[test]).float().mean().item())
