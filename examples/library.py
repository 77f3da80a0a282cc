"""Train a small U-Net on the example images and draw from it, with the core alone."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffuse_cli.core import (
    LOSSES,
    NETWORKS,
    SAMPLERS,
    SCHEDULES,
    Conditions,
    Denoiser,
    Process,
    Space,
)  # fmt: skip

torch.manual_seed(0)
with zipfile.ZipFile(Path(__file__).with_name("fashion-mnist.zip")) as archive:
    files = [archive.read(name) for name in archive.namelist()]
images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("L")) for file in files])

space, unet = Space(channels=1, size=(28, 28)), NETWORKS["unet"]
config = unet.Config(width=16, multipliers=(1, 2), blocks=1, attention=(), groups=4)
net = unet.build(config, space, Conditions())
denoiser = Denoiser(net, Process(SCHEDULES["cosine"](1000)), target="v", levels=space.levels)

x, optimizer = space.to_model(torch.from_numpy(images)[:, None]), torch.optim.Adam(net.parameters())
for step in range(1, 61):
    x0 = x[torch.randint(len(x), (32,))]
    t = torch.randint(1000, (32,))
    loss = LOSSES["simple"](denoiser, x0, t, torch.randn_like(x0)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

with torch.no_grad():
    process = denoiser.process
    noise = torch.randn(8, *space.shape)
    states = SAMPLERS["ddim"](denoiser, process, noise, process.times(10), noise=lambda k: noise)
    *_, end = states
drawn = space.to_stored(end.x)[:, 0].numpy()
Image.fromarray(np.hstack(drawn)).save("library.png")
