"""Clients that others wrote, against a real cluster: the official OpenAI client, and gRPC's own Python."""
import pathlib
import subprocess
import sys

from cluster import DEMO, Cluster, run_tests

HERE = pathlib.Path(__file__).parent


def run(script, *args):
    done = subprocess.run([sys.executable, HERE / script, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, f"{script}: exit code {done.returncode}\n{done.stdout}"


def test_the_official_openai_client_works_on_a_cluster():
    with Cluster(DEMO, nodes=3) as c:
        run("openai_client.py", c.url + "/v1", "--sampling")


def test_an_independent_grpc_client_talks_to_a_node():
    with Cluster(DEMO, nodes=1) as c:
        run("grpc_interop.py", c.facts["nodes"][0]["address"])


def test_an_independent_grpc_client_is_served_as_over_http():
    with Cluster(DEMO, nodes=3) as c:
        run("grpc_generate.py", c.facts["grpc"], c.url)


if __name__ == "__main__":
    run_tests([v for k, v in list(globals().items()) if k.startswith("test_")])
