"""tidegate: a data-aware gateway for model inference, built on mitmproxy."""

__version__ = "0.1.0"
