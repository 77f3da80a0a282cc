"""Train a small U-Net on the example images and sample from it, with the core alone."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffuse_cli.core import Denoiser, Process, Space, cosine, loss, sample, unet

with zipfile.ZipFile(Path(__file__).with_name("fashion-mnist.zip")) as archive:
    images = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()]
space = Space(channels=1, size=(28, 28))
data = space.to_model(torch.from_numpy(np.stack(images))[:, None])

torch.manual_seed(0)
net = unet(channels=1, size=28, width=16, multipliers=(1, 2), blocks=1, attention=(), groups=4)
denoiser = Denoiser(net, Process(cosine(1000)), target="v")
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for x0 in data[torch.randperm(len(data))[: 40 * 16]].split(16):
    optimizer.zero_grad()
    error = loss(denoiser, x0).mean()
    error.backward()
    optimizer.step()
print(f"loss {error.item():.3f}")

x = sample(denoiser, (8, 1, 28, 28), steps=10, sampler="unipc", seed=0)
Image.fromarray(np.hstack([*space.to_stored(x)[:, 0].numpy()])).save("library.png")
