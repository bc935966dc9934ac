"""The files that make clusters: what Ray's schema allows, what they promise each other, and what they keep private."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
AWS = ROOT / "ray_cluster.yaml"
SSH = ROOT / "clusters" / "ssh.yaml"
both = pytest.mark.parametrize("file", [AWS, SSH], ids=["aws", "ssh"])


class Template(yaml.SafeLoader):
    """Reads CloudFormation's own tags: `!Ref Name` becomes {"Ref": "Name"}."""


def tagged(loader: Template, tag: str, node: yaml.Node) -> dict[str, Any]:
    assert isinstance(node, yaml.ScalarNode)
    return {tag: loader.construct_scalar(node)}


Template.add_multi_constructor("!", tagged)


def read(file: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(file.read_text())
    return value


def stack() -> dict[str, Any]:
    value: dict[str, Any] = yaml.load((ROOT / "clusters" / "aws_stack.yaml").read_text(), Template)
    return value


def resources(kind: str) -> list[dict[str, Any]]:
    """Properties of all resources of a kind in the stack."""
    return [one["Properties"] for one in stack()["Resources"].values() if one["Type"] == kind]


def schema() -> dict[str, Any]:
    """Ray's own, found without importing Ray."""
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.submodule_search_locations
    text = (Path(package.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text()
    value: dict[str, Any] = json.loads(text)
    return value


def start_commands(file: Path) -> list[str]:
    value = read(file)
    return [*value["head_start_ray_commands"], *value["worker_start_ray_commands"]]


# what Ray allows


@both
def test_a_file_has_only_fields_that_ray_knows(file: Path) -> None:
    jsonschema.validate(read(file), schema())
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**read(file), "max_worker": 1}, schema())


@pytest.mark.ray
@both
def test_ray_takes_the_file(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(file)))


# what every cluster promises


@both
def test_nobody_speaks_to_a_cluster_without_its_token(file: Path) -> None:
    assert read(file)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "export RAY_AUTH_MODE=token" in (ROOT / "clusters" / "environment.sh").read_text()
    assert ". ~/boltzmann-budget/clusters/environment.sh' >> ~/.bashrc" in read(file)["setup_commands"][-1]
    hosts = re.findall(r"--dashboard-host=(\S+)", " ".join(start_commands(file)))
    assert hosts == ["127.0.0.1"]


@both
def test_a_node_installs_this_project_by_its_constraints(file: Path) -> None:
    install = read(file)["setup_commands"][-2]
    assert '-c constraints.txt -e ".[cluster]"' in install
    assert read(file)["file_mounts"]["~/boltzmann-budget"] == "."
    assert ".venv" in read(file)["rsync_exclude"], "a node's environment is its own"


def test_the_constraints_name_what_a_cluster_needs() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"]
    assert extra[0] == "ray[default]"
    names = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]}
    assert {"ray", "boto3", "aiohttp-cors", "opencensus", "virtualenv"} <= names


@pytest.mark.parametrize(
    "file", sorted(path for path in [AWS, *(ROOT / "clusters").iterdir()] if path.is_file()), ids=lambda path: path.name
)
def test_no_file_holds_a_secret_or_opens_a_door_to_all(file: Path) -> None:
    text = file.read_text()
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|PRIVATE KEY|(secret|password|token)\w*\s*[:=]\s*['\"]?[0-9A-Za-z/+]{20,}", text
    )
    assert "0.0.0.0/0" not in text


def test_submit_starts_the_study_as_a_job_with_the_nodes_own_interpreter(tmp_path: Path) -> None:
    tools = tmp_path / "boltzmann-budget" / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "ray").write_text('#!/bin/sh\necho "$RAY_AUTH_MODE" "$@"\n')
    (tools / "ray").chmod(0o755)
    command = [str(ROOT / "clusters" / "submit"), "studies/budget_split.py", "--budget", "10 s"]
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    home = tmp_path / "boltzmann-budget"
    job = f"{home}/.venv/bin/python {home}/studies/budget_split.py --budget 10 s"
    assert said == f"token job submit --address=http://127.0.0.1:8265 -- {job}\n"
    unnamed = subprocess.run(command[:1], env=environment, capture_output=True, text=True)
    assert unnamed.returncode != 0
    assert "name a study" in unnamed.stderr


# AWS


def test_aws_workers_come_and_go_and_the_head_has_no_gpu() -> None:
    types = read(AWS)["available_node_types"]
    assert read(AWS)["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 8, "GPU": 0}
    assert types["gpu_worker"]["resources"]["GPU"] == 1
    assert types["gpu_worker"]["min_workers"] == 0
    assert types["gpu_worker"]["max_workers"] == read(AWS)["max_workers"]
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert read(AWS)["provider"]["availability_zone"].startswith(read(AWS)["provider"]["region"])


def test_the_aws_cluster_names_what_the_stack_makes() -> None:
    head, worker = (read(AWS)["available_node_types"][name]["node_config"] for name in ("head", "gpu_worker"))
    (template,) = resources("AWS::EC2::LaunchTemplate")
    profiles = {one["InstanceProfileName"] for one in resources("AWS::IAM::InstanceProfile")}
    assert head["LaunchTemplate"]["LaunchTemplateName"] == template["LaunchTemplateName"]
    assert worker["LaunchTemplate"] == head["LaunchTemplate"]
    assert head["IamInstanceProfile"]["Name"] in profiles
    assert "IamInstanceProfile" not in worker, "only the head may start machines"
    (name,) = (one["Name"] for one in resources("AWS::SSM::Parameter"))
    assert f"--name {name} " in " ".join(read(AWS)["setup_commands"])
    policies = json.dumps(resources("AWS::IAM::Role"))
    assert json.dumps({"aws:ResourceTag/ray-cluster-name": read(AWS)["cluster_name"]}) in policies


def test_the_stack_lets_ssh_in_from_one_place_and_keeps_results() -> None:
    (firewall,) = resources("AWS::EC2::SecurityGroup")
    (rule,) = firewall["SecurityGroupIngress"]
    assert (rule["FromPort"], rule["ToPort"], rule["CidrIp"]) == (22, 22, {"Ref": "SshFrom"})
    assert "Default" not in stack()["Parameters"]["SshFrom"]
    (between,) = resources("AWS::EC2::SecurityGroupIngress")
    assert between["SourceSecurityGroupId"] == between["GroupId"]
    assert stack()["Resources"]["Shared"]["DeletionPolicy"] == "Retain"
    assert stack()["Resources"]["Shared"]["Properties"]["Encrypted"] is True


# Kubernetes


def test_the_kubernetes_cluster_grows_shares_a_folder_and_asks_for_a_token() -> None:
    claim, cluster = yaml.safe_load_all((ROOT / "clusters" / "kuberay.yaml").read_text())
    assert (claim["kind"], cluster["kind"], cluster["apiVersion"]) == (
        "PersistentVolumeClaim",
        "RayCluster",
        "ray.io/v1",
    )
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    (workers,) = spec["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (0, 8)
    pods = [spec["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert mount == {"name": volume["name"], "mountPath": "/shared"}
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods]
    assert ["nvidia.com/gpu" in limit for limit in limits] == [False, True]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
