"""Finding, checking, decoding and caching samples, and their labels."""

from diffuse_cli.data.metadata_files import Cells as Cells
from diffuse_cli.data.metadata_files import read_cells as read_cells
from diffuse_cli.data.reader import read_images as read_images
from diffuse_cli.data.samples import HELD_OUT_MINIMUM as HELD_OUT_MINIMUM
from diffuse_cli.data.samples import HELD_OUT_OF as HELD_OUT_OF
from diffuse_cli.data.samples import Dataset as Dataset
from diffuse_cli.data.samples import Pairs as Pairs
from diffuse_cli.data.samples import held_out_rule as held_out_rule
from diffuse_cli.data.samples import pair as pair
from diffuse_cli.data.saved_samples import open_index as open_index
from diffuse_cli.data.saved_samples import save_index as save_index
from diffuse_cli.data.sources import MANIFEST as MANIFEST
from diffuse_cli.data.sources import MANIFEST_FORMAT as MANIFEST_FORMAT
from diffuse_cli.data.sources import file_hashes as file_hashes
from diffuse_cli.data.sources import is_images as is_images
from diffuse_cli.data.sources.in_memory import File as File
from diffuse_cli.data.sources.in_memory import held as held
from diffuse_cli.data.summary import Summary as Summary
