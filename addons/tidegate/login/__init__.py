"""A person's own login: how ``tidegate login`` gets a token from an identity provider, keeps it and renews it.

Runs on the person's machine and imports nothing heavy: programs call it for each key they need.
"""
