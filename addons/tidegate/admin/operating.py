"""The routes an operator's tools call: health, readiness, metrics, reload."""

from __future__ import annotations

import logging

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from tidegate.admin.answers import told
from tidegate.admin.doors import Door, Needs, Public, Visit
from tidegate.policy.policy import AdminRight, PolicyError

log = logging.getLogger("tidegate")

_PROBED = "a balancer has no token; the answer says yes or no, and names parts of the gate"


async def healthz(visit: Visit) -> Response:
    """Say whether the process is worth keeping: this thread and the data path's loop both turn."""
    if await visit.services.alive():
        return told({"status": "alive"})
    return told({"status": "stuck"}, 503)


async def readyz(visit: Visit) -> Response:
    """Say whether traffic should come here."""
    checks = await visit.services.ready()
    fit = all(checks.values())
    body = {"status": "ready" if fit else "not ready", "checks": checks, "policy": visit.services.policy().sha256}
    return told(body, 200 if fit else 503)


async def metrics(visit: Visit) -> Response:
    """Return the metrics in Prometheus' text format."""
    services, policy = visit.services, visit.services.policy()
    page = services.metrics.page(policy.sha256, policy.mode, services.failing())
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


async def reload(visit: Visit) -> Response:
    """Load the policy's file again; with a fault the policy in force stays, and the faults are told."""
    services = visit.services
    before = services.policy().sha256
    try:
        problems = await services.reload()
    except PolicyError as error:
        services.metrics.reloads.labels("refused").inc()
        log.warning("the policy was not reloaded: %d faults; the one in force stays", len(error.faults))
        faults = [
            {"file": each.file, "key": each.key, "found": each.found, "accepted": each.accepted}
            for each in error.faults
        ]
        body = {"error": {"code": "policy_faults", "message": "The policy in force stays.", "faults": faults}}
        return told(body, 422)
    after = services.policy()
    services.metrics.reloads.labels("loaded").inc()
    log.info("the policy was reloaded: sha256 %s", after.sha256)
    mind = [*after.warnings, *problems]
    return told({"policy": {"file": after.file, "sha256": after.sha256, "before": before}, "warnings": mind})


DOORS = (
    Door("GET", "/healthz", Public(_PROBED), healthz),
    Door("GET", "/readyz", Public(_PROBED), readyz),
    Door("GET", "/metrics", Needs(AdminRight.METRICS), metrics),
    Door("POST", "/v1/policy/reload", Needs(AdminRight.RELOAD), reload),
)
