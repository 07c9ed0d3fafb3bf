"""Run any module again with some activations written over, and compute only what that may change."""

from crosspatch.replay.recording import Recording as Recording
from crosspatch.replay.recording import Spot as Spot
from crosspatch.replay.recording import outline as outline
from crosspatch.replay.recording import record as record
from crosspatch.replay.running import Write as Write
from crosspatch.replay.running import replay as replay
from crosspatch.replay.running import see as see
from crosspatch.replay.running import writing as writing
