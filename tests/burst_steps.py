"""Steps of a move on two faked sites."""

from hpcscale.burst.claims import Word, decision


def client(sites, site="lab-onprem"):
    return sites.connections[site].client


def at_the_gate(sites, **kw):
    job = sites.submit(**kw)
    sites.tick()
    sites.both(40)
    sites.report(sites.target(job).submission_id, "gated", task=0 if kw else None, time=100.0)
    return job


def begun(sites, job, task=None):
    """The gate is open, the command begins."""
    sites.tick()
    target = sites.target(job).submission_id
    assert decision(sites.cloud, sites.target(job)) is Word.OPENED
    sites.report(target, task=task, time=104.0)
    sites.tick()
