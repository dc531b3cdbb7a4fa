"""What `tidegate flows open` gives to mitmweb: a recording, or some of its exchanges."""

from tidegate.replay.record import Viewer

addons = [Viewer()]
