"""`python -m diffuse_cli`, which is what launchers such as torchrun start."""

from diffuse_cli.app import run

if __name__ == "__main__":
    run()
