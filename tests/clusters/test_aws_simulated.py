"""The AWS files against a simulator: the stack is deployed, Ray reads the cluster's file and starts its machines.

What no simulator has is a machine behind an instance: `ray up` would wait for its ssh.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ZONE = "us-west-2a"
HOME = "203.0.113.7/32"
"""An address for documentation: nobody's."""

IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
"""A name that the simulator does not know."""

moto = pytest.importorskip("moto", reason="the simulator (moto[ec2,efs,iam,ssm,cloudformation]) is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 comes with the extra `cluster`")

pytestmark = pytest.mark.ray


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A simulated account, and a home of its own for the keys that Ray makes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws():
        yield boto3.Session(region_name="us-west-2")


def deploy(session: Any) -> None:
    ec2 = session.client("ec2")
    (subnet,) = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [ZONE]}])["Subnets"]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    session.client("ssm").put_parameter(Name="/image", Value=image, Type="String")
    given = {"Vpc": subnet["VpcId"], "Subnet": subnet["SubnetId"], "SshFrom": HOME}
    template = (ROOT / "clusters" / "aws_stack.yaml").read_text()
    assert IMAGE in template
    session.client("cloudformation").create_stack(
        StackName="boltzmann-budget",
        TemplateBody=template.replace(IMAGE, "/image"),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def bootstrapped() -> dict[str, Any]:
    """What `ray up` makes of the file before it starts a machine."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
    validate_config(config)
    result: dict[str, Any] = bootstrap_aws(config)
    return result


def start(config: dict[str, Any], kind: str) -> Any:
    """One machine of a type, as Ray's autoscaler starts it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    before = set(provider.non_terminated_nodes({}))
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: kind}
    provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    (node,) = set(provider.non_terminated_nodes({})) - before
    return boto3.resource("ec2").Instance(node)


def test_the_stack_opens_ssh_to_one_place_and_keeps_a_shared_folder(aws: Any) -> None:
    deploy(aws)
    (firewall,) = aws.client("ec2").describe_security_groups(GroupNames=["boltzmann-budget"])["SecurityGroups"]
    open_to = [address["CidrIp"] for rule in firewall["IpPermissions"] for address in rule["IpRanges"]]
    among = [pair["GroupId"] for rule in firewall["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert open_to == [HOME]
    assert among == [firewall["GroupId"]]
    (folder,) = aws.client("efs").describe_file_systems()["FileSystems"]
    name = aws.client("ssm").get_parameter(Name="/boltzmann-budget/shared")["Parameter"]["Value"]
    assert name == f"{folder['FileSystemId']}.efs.us-west-2.amazonaws.com"
    assert folder["Encrypted"]


def test_ray_starts_machines_from_the_stacks_template(aws: Any) -> None:
    deploy(aws)
    config = bootstrapped()
    head, worker = start(config, "head"), start(config, "gpu_worker")
    assert (head.instance_type, worker.instance_type) == ("m6i.2xlarge", "g5.2xlarge")
    assert {group["GroupName"] for machine in (head, worker) for group in machine.security_groups} == {
        "boltzmann-budget"
    }
    assert head.image_id == aws.client("ssm").get_parameter(Name="/image")["Parameter"]["Value"]
    assert worker.placement["AvailabilityZone"] == ZONE
    assert worker.instance_lifecycle == "spot"
    assert head.instance_lifecycle != "spot"


def test_only_the_head_may_start_machines_and_end_those_of_this_cluster(aws: Any) -> None:
    deploy(aws)
    iam = aws.client("iam")
    actions: dict[str, str] = {}
    for name in ("head", "node"):
        (role,) = iam.get_instance_profile(InstanceProfileName=f"boltzmann-budget-{name}")["InstanceProfile"]["Roles"]
        policies = iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        found = [
            iam.get_role_policy(RoleName=role["RoleName"], PolicyName=policy)["PolicyDocument"] for policy in policies
        ]
        actions[name] = json.dumps(found)
    assert "ec2:RunInstances" in actions["head"]
    assert "ec2:" not in actions["node"]
    assert "ssm:GetParameter" in actions["node"]
