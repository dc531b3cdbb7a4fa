"""Record every HTTP exchange, with no gate: ``mitmdump -s addons/recorder.py --set recording=recordings/plain.db``.

Nothing is judged and nothing is masked: bodies are recorded as they pass. Credentials are left out.
"""

from tidegate.replay.record import PlainRecorder

addons = [PlainRecorder()]
