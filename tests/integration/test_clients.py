"""Clients that others wrote, against a real cluster: the official OpenAI clients and gRPC's own, for Python and for Node."""
import pathlib
import subprocess
import sys

from cluster import DEMO, Cluster, run_tests

HERE = pathlib.Path(__file__).parent


def run(script, *args):
    program = "node" if script.endswith(".mjs") else sys.executable
    done = subprocess.run([program, HERE / script, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, f"{script}: exit code {done.returncode}\n{done.stdout}"


def test_the_official_openai_clients_work_on_a_cluster():
    with Cluster(DEMO, nodes=3) as c:
        run("openai_client.py", c.url + "/v1", "--sampling")
        run("node/openai_client.mjs", c.url + "/v1")


def test_an_independent_grpc_client_talks_to_a_node():
    with Cluster(DEMO, nodes=1) as c:
        run("grpc_interop.py", c.facts["nodes"][0]["address"])


def test_independent_grpc_clients_are_served_as_over_http():
    with Cluster(DEMO, nodes=3) as c:
        run("grpc_generate.py", c.facts["grpc"], c.url)
        run("node/grpc_client.mjs", c.facts["grpc"], c.url)


if __name__ == "__main__":
    run_tests([v for k, v in list(globals().items()) if k.startswith("test_")])
