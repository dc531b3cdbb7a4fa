"""Look at a recording: ``mitmweb --no-server -s addons/replay.py --set recording=recordings/tidegate.db``."""

from tidegate.replay.record import Viewer

addons = [Viewer()]
