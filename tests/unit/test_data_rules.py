import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcscale.render.burstable import blockers, data_blockers
from hpcscale.site import load_site
from hpcscale.site.profile import DataRules
from hpcscale.spec import BurstTerms, JobSpec


def site(regions=(), tags=()):
    return msgspec.structs.replace(
        load_site("lab-cloud").site, data=DataRules(regions=regions, tags=tags)
    )


@pytest.mark.parametrize(
    ("tags", "regions", "held", "says"),
    [
        (("hipaa",), (), ("public", "hipaa"), None),
        (("hipaa",), (), ("public",), "data rule hipaa: lab-cloud may hold public"),
        (("eu-only",), ("eu-central-1", "eu-west-1"), (), None),
        (("eu-only",), ("eu-central-1", "us-east-1"), (), "stands in us-east-1"),
        (("eu-only",), ("europe9",), (), "stands in europe9"),
        (("eu-only",), (), ("eu-only",), "names no regions"),
        (("itar", "eu-only"), ("eu-west-1",), (), "data rule itar: lab-cloud may hold nothing"),
    ],
)
def test_a_rule_of_the_data_is_hard_and_named(tags, regions, held, says):
    found = data_blockers(tags, site(regions, held))
    assert (found == []) if says is None else (says in found[0])
    spec = JobSpec(command=("true",), burst=BurstTerms(data=tags))
    assert (blockers(spec, site(regions, held)) == []) is (says is None)


def test_a_job_without_tags_is_hashed_as_before():
    assert "data" not in JobSpec().spec_hash()
    tagged = JobSpec(burst=BurstTerms(data=("hipaa",)))
    assert tagged.spec_hash() != JobSpec().spec_hash()


@given(st.lists(st.sampled_from(["hipaa", "itar", "eu-only"])))
def test_more_rules_never_allow_more(tags):
    target = site(("eu-west-1",), ("hipaa",))
    for k in range(len(tags)):
        fewer = data_blockers(tuple(tags[:k]), target)
        assert set(fewer) <= set(data_blockers(tuple(tags), target))
