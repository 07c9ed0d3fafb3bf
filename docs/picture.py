"""Make the picture of the README: `python docs/picture.py`."""

from pathlib import Path

import crosspatch as xp
from crosspatch.draw import heatmap_svg

model = xp.open_model("gemma-3-270m")
task = xp.tasks.ioi(model, n=24, template=0, order="ABBA")
effects = xp.patch(model, task, sites="resid.post")
panel = effects.grid("resid.post").panel()
Path(__file__).with_name("ioi.svg").write_text(heatmap_svg(panel, effects.colours(), room=640), encoding="utf-8")
