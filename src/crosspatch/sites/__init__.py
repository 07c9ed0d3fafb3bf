"""Sites: addresses of activations, as pure data, and the grammar that selects them."""

from .extent import Extent as Extent
from .grammar import Pattern as Pattern
from .grammar import Selection as Selection
from .grammar import parse as parse
from .grammar import parse_site as parse_site
from .group import Address as Address
from .group import Edge as Edge
from .group import Group as Group
from .group import group_from_json as group_from_json
from .group import group_to_json as group_to_json
from .group import members_of as members_of
from .items import EACH as EACH
from .items import Item as Item
from .items import Items as Items
from .items import Span as Span
from .items import expand_positions as expand_positions
from .items import resolve_position as resolve_position
from .site import KINDS as KINDS
from .site import Kind as Kind
from .site import Site as Site
from .site import kind_of as kind_of
from .site import split_stack as split_stack
from .transformer_lens import from_transformer_lens as from_transformer_lens
from .transformer_lens import to_transformer_lens as to_transformer_lens
