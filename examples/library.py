"""Train a small U-Net on the example images and draw from it, with the core alone."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffuse_cli import core

with zipfile.ZipFile(Path(__file__).with_name("fashion-mnist.zip")) as archive:
    opened = [Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    images = np.stack([np.asarray(image) for image in opened])
space, unet = core.Space(channels=1, size=(28, 28)), core.NETWORKS["unet"]
data = space.to_model(torch.from_numpy(images)[:, None])

torch.manual_seed(0)
config = unet.Config(width=16, multipliers=(1, 2), blocks=1, attention=(), groups=4)
net = unet.build(config, space, core.Conditions())
denoiser = core.Denoiser(net, core.Process(core.SCHEDULES["cosine"](1000)), target="v")
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for _ in range(40):
    x0, t = data[torch.randint(len(data), (16,))], torch.randint(1000, (16,))
    loss = core.LOSSES["simple"](denoiser, x0, t, torch.randn_like(x0)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")

process, noise = denoiser.process, torch.randn(8, *space.shape)
with torch.no_grad():
    states = core.SAMPLERS["unipc"](
        denoiser, process, noise, process.times(10), noise=lambda k: noise
    )
    last = list(states)[-1]
Image.fromarray(np.hstack([*space.to_stored(last.x)[:, 0].numpy()])).save("library.png")
