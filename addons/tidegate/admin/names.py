"""The names of all metrics and their labels, in one place, because the conventions for some of them still change.

Those that begin with ``gen_ai`` are the OpenTelemetry names that Envoy AI Gateway exports, as Prometheus spells them,
so that dashboards made for it work here. No label holds anything of a body, a caller or an address.
"""

from __future__ import annotations

EXCHANGES = "tidegate_exchanges"
DECISIONS = "tidegate_decisions"
REDACTIONS = "tidegate_redactions"
REQUEST_BYTES = "tidegate_request_bytes"
RESPONSE_BYTES = "tidegate_response_bytes"
OPEN = "tidegate_exchanges_open"
RECORDING_DROPPED = "tidegate_recording_dropped"
RECORDING_STRIPPED = "tidegate_recording_stripped"
RECORDING_QUEUE = "tidegate_recording_queue_bytes"
KEYS_FAILING = "tidegate_identity_keys_failing"
POLICY = "tidegate_policy"
RELOADS = "tidegate_policy_reloads"
ADMIN_REQUESTS = "tidegate_admin_requests"
TOKENS_ISSUED = "tidegate_tokens_issued"
SAML_REFUSED = "tidegate_saml_refused"

DURATION = "gen_ai_server_request_duration_seconds"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"

MODELS = ("gen_ai_original_model", "gen_ai_request_model", "gen_ai_response_model")
"""Asked for by the client, sent to the provider, named by its answer. Nothing here rewrites a model, so the first two
are equal; the third is not read."""

DURATION_BUCKETS = tuple(0.01 * 2**n for n in range(14))
"""OpenTelemetry's advice for ``gen_ai.server.request.duration``: 0.01 to 81.92 s."""
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""OpenTelemetry's advice for ``gen_ai.server.time_to_first_token``."""
