"""The whole gate in the user's own mitmproxy: ``mitmdump -s addons/gateway.py --set tidegate=rules/policy.yaml``."""

from tidegate.standalone import Standalone

addons = [Standalone()]
