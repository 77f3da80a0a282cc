"""Data sets: find, check, decode and cache samples and their labels."""

from diffuse_cli.data.metadata_files import read_cells as read_cells
from diffuse_cli.data.reader import read_images as read_images
from diffuse_cli.data.samples import Dataset as Dataset
from diffuse_cli.data.samples import Pairs as Pairs
from diffuse_cli.data.samples import held_out_rule as held_out_rule
from diffuse_cli.data.samples import match_members as match_members
from diffuse_cli.data.samples import match_pairs as match_pairs
from diffuse_cli.data.sources import file_hashes as file_hashes
from diffuse_cli.data.sources import is_images as is_images
from diffuse_cli.data.store import open_index as open_index
from diffuse_cli.data.store import save_index as save_index
from diffuse_cli.data.summary import Summary as Summary
