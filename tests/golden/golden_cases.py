"""The command lines whose results are held: `CASES`, and the networks that they train.

Every case runs in an empty folder with the corpora `grey`, `held`, `many`, `emoji`, `sounds`,
`fields` and `volumes`, `grey` as the tar files of `shards` and as `grey.parquet`, a picture
`mask.png`, the files of `NETWORKS` and a copy of `fixtures/`. `goldens.measure` lists the measured
files.
"""

COMMON = """\
batch_size = 8
precision = "fp32"
lr = 0.002
warmup = 2
optimizer = "adamw"
weighting = "min-snr"
ema_decay = 0.7
num_timesteps = 100
preview_every = 100000
"""
UNET = "[unet]\nwidth = 8\nblocks = 1\ngroups = 4\n"
WIDE = "[unet]\nwidth = 16\nblocks = 1\ngroups = 1\nresblock_updown = true\nscale_shift = false\n"
LEVELS = "multipliers = [1, 2]\n"
CUT = LEVELS + "attention = []\npatch = 2\n"
NETWORKS = {
    "small.toml": UNET + LEVELS + "attention = [4]\n",
    "any-size.toml": UNET + "attention = [4]\n",
    "wide.toml": WIDE + LEVELS + "attention = [4]\nhead_width = 16\n",
    "patches.toml": UNET + CUT,
    "vit.toml": "[vit]\npatch = 2\nwidth = 16\ndepth = 2\nhead_width = 8\ncontext = 1\n",
    "convnext.toml": UNET + CUT + 'block = "convnext"\ntime_embedding = "fourier"\ndropout = 0.1\n',
}
"""Configuration files: `COMMON` comes before each, and `default-NAME` is without it."""


def train(options, data="grey", network="small", steps=6, model="m"):
    """The command line of a training run."""
    return f"train {data} --config {network}.toml --steps {steps} -o {model}.safetensors {options}"


def sample(options, model="m", count=2):
    """The command line that draws from a model."""
    return f"sample {model}.safetensors -o samples --no-grid --precision fp32 -n {count} {options}"


def task(line, options):
    """The command line of a task with a model on pictures."""
    return f"{line} -o samples --no-grid --precision fp32 {options}"


def evaluate(options, data="grey"):
    """The command line that measures a model."""
    settings = "--json --precision fp32 -n 8 --batch-size 8 --steps 2"
    return f"eval m.safetensors {data} {settings} {options}"


CASES = {
    "eps-small": (
        train("--target eps --variance small --schedule linear --weighting none --keep-raw"),
        sample("--sampler ddpm --steps 5"),
        evaluate("--sampler ddpm --timesteps 3"),
    ),
    "v-large-wide": (
        train("--target v --variance large --flip", network="wide"),
        sample("--sampler unipc --order 3 --spacing trailing --steps 6"),
        evaluate("--metrics likelihood --timesteps 3 --respaced 10"),
    ),
    "x0-p2": (
        train("--target x0 --variance small --schedule sigmoid --weighting p2 --accumulation 2"),
        sample("--sampler ddim --eta 0.5 --steps 5 --threshold 0.9"),
    ),
    "mu-hybrid": (
        train(
            "--target mu --variance learned --loss hybrid --weighting min-snr"
            " --no-rescale-timesteps"
        ),
        sample("--sampler ddpm --steps 5 --spacing leading"),
    ),
    "eps-vlb": (
        # Every timestep of three is seen ten times, from where the losses decide the draw.
        train(
            "--target eps --variance learned --loss vlb --timestep-draw importance --seed 3"
            " --num-timesteps 3",
            steps=10,
        ),
        sample("--sampler ddpm --steps 3"),
        evaluate("--metrics likelihood --timesteps all"),
    ),
    "classes": (
        train("--classes --label-dropout 0.3 --variance learned --weighting min-snr"),
        sample(
            "--sampler dpmpp-2m --steps 5 --guidance 3 --guidance-interval 0.1,9"
            " --class light --class dark",
            count=4,
        ),
        evaluate("--sampler ddim --timesteps 3"),
    ),
    "resume": (
        train("--flip --accumulation 2 --stop-at 4"),
        train("--flip --accumulation 2 --resume"),
        sample("--sampler heun --steps 4"),
    ),
    "emoji": (
        train("--size 16 --background black --classes", data="emoji", network="any-size"),
        sample("--spacing trailing --steps 4 --guidance 1"),
    ),
    "convnext": (
        train("--gradient-checkpointing", network="convnext"),
        sample("--sampler dpmpp-2m-sde --steps 5 --spacing karras"),
    ),
    "zero-terminal-snr": (
        train("--schedule quadratic --zero-terminal-snr --target v"),
        sample("--sampler ipndm --steps 6 --spacing linspace"),
    ),
    "init": (
        train("--init plain.safetensors --seed 5", network="init", steps=4),
        sample("--spacing trailing --steps 4"),
    ),
    "two-processes": (
        f"twice {train('--classes --flip')}",
        sample("--spacing trailing --steps 3 --seed 2"),
    ),
    "convert": (
        "convert diffusers -o m.safetensors",
        sample("--spacing trailing --steps 4", count=2),
        evaluate("--spacing trailing --timesteps 3", data="emoji"),
    ),
    "folders": ("eval grey held --json -n 8",),
    "sounds": (
        train("--augment gain", data="sounds"),
        sample("--steps 4", count=2),
        evaluate("--timesteps 3 --metrics likelihood,random-kid", data="sounds"),
    ),
    # Read anew in every epoch.
    "tar": (train("--classes --cache 0", data="shards"), sample("--steps 4")),
    "parquet": (train("--classes --flip", data="grey.parquet"), sample("--steps 4")),
    "inpaint": (
        task("inpaint plain.safetensors grey/dark/00.png", "--mask mask.png -n 2 --steps 4"),
    ),
    "upscale": (task("upscale plain.safetensors held/light/01.png", "--factor 2 -n 2 --steps 4"),),
    "interpolate": (
        task(
            "interpolate classes.safetensors grey/dark/00.png grey/light/01.png", "-n 3 --steps 20"
        ),
    ),
    "low-res": (
        train("--given low-res:2"),
        sample("--given held/dark --degrade --steps 4", count=1),
        evaluate("--timesteps 3 --metrics likelihood,answers"),
    ),
    "distill": (
        "distill classes.safetensors grey -o m.safetensors --steps 6 --batch-size 4"
        " --precision fp32",
        sample(""),
    ),
    "export": (
        train("--num-timesteps 1000", model="own"),
        "convert own.safetensors --to diffusers -o exported",
    ),
    "page": (
        train("--classes --log-every 1"),
        evaluate("--timesteps 3 --report page.html").replace("--json ", ""),
    ),
    # The options that decide results, as nobody sets them.
    "defaults": (
        "train grey --config default-small.toml --steps 12 -o m.safetensors",
        "sample m.safetensors -o samples --no-grid -n 2",
        "eval m.safetensors held --json -n 8 --metrics likelihood,kid,marginals",
    ),
    "default-classes": (
        "train grey --config default-small.toml --classes --steps 6 -o m.safetensors",
        "sample m.safetensors -o samples --no-grid -n 2",
    ),
    # A Wiener filter and, of it, a start from the data's Gaussian.
    "default-wiener": (
        "train emoji --config default-patches.toml --size 16 --steps 6 -o m.safetensors",
        "sample m.safetensors -o samples --no-grid -n 2",
        evaluate("--metrics likelihood --timesteps 3", data="emoji"),
    ),
    "wiener-flip": (
        train("--wiener --flip --no-keep-weak", network="patches"),
        sample("--sampler ddim --steps 4 --start noise --spacing early"),
    ),
    "vit": (
        train("--target flow --schedule flow --weighting logit-normal", network="vit"),
        sample("--sampler ddim --steps 4 --spacing wide"),
    ),
    "weak": (
        train("--keep-weak --optimizer muon --weighting flow --target flow"),
        sample("--guide-with self --weak-guidance 2 --steps 4"),
    ),
    "augment": (
        train("--augment flip,zoom,rotate,shift,color", data="emoji", network="default-patches"),
        sample("--steps 4"),
    ),
    "fields": (
        train("--transform asinh --augment flip,shift", data="fields"),
        sample("--steps 4"),
        evaluate("--timesteps 3", data="fields"),
    ),
    "volumes": (train("--layout DHW --augment shift", data="volumes"), sample("--steps 3")),
    "depths": (
        train("--bits 16 --schedule laplace --weighting jit --target x0 --timestep-draw weight"),
        sample("--steps 4"),
    ),
    "alpha": (
        train("--alpha --size 16 --schedule sqrt", data="emoji", network="any-size"),
        sample("--steps 4"),
    ),
    # Held-out images decide the optimal variance.
    "optimal": (
        train("--schedule constant --log-snr-shift -1", data="many"),
        sample("--sampler ddpm --variance optimal --steps 4"),
        evaluate("--metrics likelihood --variance optimal --timesteps 3"),
    ),
    "ode": (evaluate("--metrics likelihood-ode --ode-steps 4").replace("eval m", "eval plain"),),
    "training-data": (
        train("--keep last", data="many"),
        evaluate("--metrics memorization,overfitting,baselines,spectrum", data="many"),
    ),
    "columns": (
        train("--condition-on age,site", data="many"),
        sample("--on age=22 --on site=south --steps 4 --guidance 2"),
    ),
    "mask": (
        train("--given mask:half --given-noise 0.1 --given-dropout 0.2"),
        sample("--given held/dark --degrade --steps 4", count=1),
    ),
    "pairs": (
        train("--given emoji", data="emoji", network="any-size"),
        "sample m.safetensors -o samples --no-grid -n 1 --given emoji/disc/00.png --steps 4",
    ),
    "ema": (
        train("--ema-lengths 4 --keep-raw", steps=12, model="own"),
        "ema own.safetensors held -o m.safetensors --metric held-out",
    ),
    "tune": (
        "tune classes.safetensors held --samplers ddim --steps 3 --guidance 2 -n 8"
        " --precision fp32 -o m.safetensors",
        sample("", count=4),
    ),
    "restore": (
        task(
            "restore plain.safetensors held/light/01.png",
            "--degradation blur:1+noise:0.1 --degrade --method pigdm -n 2 --steps 4",
        ),
    ),
    "vary": (task("vary plain.safetensors held/light/01.png", "--strength 0.5 -n 2 --steps 4"),),
    # Files that the code wrote when these results were first recorded.
    "fixture-plain": (
        "info plain.safetensors --json",
        sample("--spacing trailing --steps 4", "plain"),
    ),
    # With the sampler, steps and guidance that the file recommends.
    "fixture-classes": ("info classes.safetensors --json", sample("", "classes")),
    "fixture-learned": (
        "info learned.safetensors --json",
        sample("--sampler ddpm --steps 4", "learned"),
    ),
}
