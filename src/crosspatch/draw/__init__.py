"""Draw arrays with labels: static SVG and HTML for pages and notebooks, text for terminals; knows no tensors."""

from crosspatch.draw.colour import OKABE_ITO as OKABE_ITO
from crosspatch.draw.colour import Scale as Scale
from crosspatch.draw.colour import diverging as diverging
from crosspatch.draw.colour import level_class as level_class
from crosspatch.draw.colour import level_css as level_css
from crosspatch.draw.colour import nice_limit as nice_limit
from crosspatch.draw.curves import Curve as Curve
from crosspatch.draw.curves import curves_svg as curves_svg
from crosspatch.draw.heatmap import colour_bar_svg as colour_bar_svg
from crosspatch.draw.heatmap import heatmap_svg as heatmap_svg
from crosspatch.draw.html import table_html as table_html
from crosspatch.draw.label import clip as clip
from crosspatch.draw.label import number as number
from crosspatch.draw.label import p_value as p_value
from crosspatch.draw.label import shown as shown
from crosspatch.draw.label import with_interval as with_interval
from crosspatch.draw.panel import Panel as Panel
from crosspatch.draw.scatter import Point as Point
from crosspatch.draw.scatter import scatter_svg as scatter_svg
from crosspatch.draw.strip import strip_svg as strip_svg
from crosspatch.draw.terminal import TerminalMap as TerminalMap
from crosspatch.draw.terminal import rich_table as rich_table
