import os
import re
import subprocess
from pathlib import Path

import pytest

SANDBOX = Path(__file__).parents[2] / "slurm" / "sandbox"

ONCE_AGAIN = """#!/bin/bash
[ "${SLURM_RESTART_COUNT-0}" = 0 ] || { echo "again on $(hostname)"; exit; }
sleep 300
"""

ASKS_FOR_REQUEUE = """#!/bin/bash
[ "${SLURM_RESTART_COUNT-0}" = 0 ] || { echo again; exit; }
trap 'echo warned; scontrol requeue $SLURM_JOB_ID' USR1
while :; do sleep 0.1; done
"""


def run_sandbox(*argv, **options):
    return subprocess.run([SANDBOX, *argv], capture_output=True, text=True, **options)


def submit(sandbox, folder, script, *options):
    path = folder / "job.sh"
    path.write_text(script)
    return sandbox.sh("sbatch", "--parsable", f"--chdir={folder}", "--output=%j.out", *options, path)


def refused(*options):
    done = subprocess.run(["sbatch", *options, "--output=/dev/null", "--wrap=true"], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "''"),
        (["sideways"], "'sideways'"),
        (["up", "--fast"], "'--fast'"),
        (["up", "--nodes"], "--nodes"),
        (["up", "--nodes", "0"], "'0'"),
        (["up", "--gpus", "two"], "'two'"),
        (["down", "--all"], "'--all'"),
        (["status", "--all"], "'--all'"),
        (["node", "crash"], "a node"),
        (["node", "explode", "n1"], "'explode'"),
        (["node", "exec", "n1"], "command"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(argv, word):
    done = run_sandbox(*argv)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and word in done.stderr


def test_nodes_have_names_ranks_and_gpus_of_their_own(sandbox, shared_dir):
    script = "#!/bin/bash\nsrun bash -c 'echo $SLURM_PROCID $(hostname) $CUDA_VISIBLE_DEVICES'\n"
    job = submit(sandbox, shared_dir, script, "--nodelist=n[1-2]", "--ntasks-per-node=2", "--gpus-per-task=1")
    sandbox.wait_state(job, "COMPLETED")
    lines = [line.split() for line in sorted((shared_dir / f"{job}.out").read_text().splitlines())]
    assert [line[:2] for line in lines] == [["0", "n1"], ["1", "n1"], ["2", "n2"], ["3", "n2"]]
    assert sorted(line[2] for line in lines[:2]) == ["0", "1"]
    assert sorted(line[2] for line in lines[2:]) == ["0", "1"]


@pytest.mark.parametrize(("partition", "warning"), [("main", ["warned"]), ("rude", [])])
def test_high_preempts_jobs_which_run_again(sandbox, shared_dir, partition, warning):
    options = ["--nodelist=n2", "--exclusive", "--open-mode=append"]
    job = submit(sandbox, shared_dir, ASKS_FOR_REQUEUE, f"--partition={partition}", "--signal=B:USR1", *options)
    sandbox.wait_state(job, "RUNNING")
    high = submit(sandbox, shared_dir, "#!/bin/bash\n", "--partition=high", *options)
    sandbox.wait_state(high, "COMPLETED")
    sandbox.wait_state(job, "COMPLETED")
    lines = (shared_dir / f"{job}.out").read_text().splitlines()
    assert [line for line in lines if not line.startswith("slurmstepd")] == [*warning, "again"]


def test_a_job_of_a_failed_node_runs_again(sandbox, shared_dir):
    job = submit(sandbox, shared_dir, ONCE_AGAIN, "--nodelist=n3")
    sandbox.wait_state(job, "RUNNING")
    sandbox.sh("scontrol", "update", "nodename=n3", "state=down", "reason=test")
    sandbox.wait_state(job, "PENDING", timeout_s=10)


def test_a_node_that_was_booted_again_has_lost_its_job(sandbox, shared_dir):
    job = submit(sandbox, shared_dir, ONCE_AGAIN, "--nodelist=n4")
    sandbox.wait_state(job, "RUNNING")
    sandbox.node("crash", "n4")
    sandbox.node("boot", "n4")
    sandbox.wait_state(job, "COMPLETED")
    assert "again on n4" in (shared_dir / f"{job}.out").read_text()


def test_a_cut_node_keeps_its_job(sandbox, shared_dir):
    job = submit(sandbox, shared_dir, "#!/bin/bash\nsleep 4\n", "--nodelist=n3")
    sandbox.wait_state(job, "RUNNING")
    sandbox.node("cut", "n3")
    reach = ["bash", "-c", "timeout 1 bash -c ': <>/dev/tcp/n3/6818' 2>&1 && echo yes || echo no"]
    assert sandbox.exec("n1", *reach).endswith("no")
    sandbox.node("heal", "n3")
    assert sandbox.exec("n1", *reach) == "yes"
    sandbox.wait_state(job, "COMPLETED")
    assert "Restarts=0" in sandbox.sh("scontrol", "show", "job", job)


def test_a_job_outlives_its_slurmd(sandbox, shared_dir):
    job = submit(sandbox, shared_dir, "#!/bin/bash\nsleep 3\n", "--nodelist=n3")
    sandbox.wait_state(job, "RUNNING")
    sandbox.node("kill-slurmd", "n3")
    assert "slurmd" not in sandbox.exec("n3", "ps", "-eo", "comm").splitlines()
    sandbox.node("start-slurmd", "n3")
    sandbox.wait_state(job, "COMPLETED")


def test_nodes_share_tmp_but_not_dev_shm(sandbox, shared_dir):
    (shared_dir / "here").touch()
    sandbox.exec("n1", "touch", "/dev/shm/refbert-sandbox-test")
    assert sandbox.exec("n2", "ls", shared_dir) == "here"
    sandbox.exec("n2", "test", "!", "-e", "/dev/shm/refbert-sandbox-test")
    assert not Path("/dev/shm/refbert-sandbox-test").exists()


def test_nodes_reach_each_other_and_nothing_else(sandbox):
    sandbox.exec("n1", "bash", "-c", ": <>/dev/tcp/n2/6818")
    assert "Network is unreachable" in sandbox.exec("n1", "bash", "-c", "(: <>/dev/tcp/203.0.113.7/80) 2>&1 || true")
    assert sandbox.exec("n1", "bash", "-c", "getent hosts example.org || echo unknown") == "unknown"


def test_up_again_changes_nothing(sandbox):
    def starts():
        shown = sandbox.sh("scontrol", "show", "config") + sandbox.sh("scontrol", "show", "nodes")
        return re.findall(r"(?:BOOT_TIME +|SlurmdStartTime)= ?\S+", shown)

    settings = re.findall(r"(\w+)=(\d+)", run_sandbox("status").stdout.splitlines()[0])
    options = [word for name, value in settings for word in (f"--{name.replace('_', '-')}", value)]
    before = starts()
    done = run_sandbox("up", *options)
    assert done.returncode == 0 and "already up" in done.stdout
    assert starts() == before and len(before) > 1


def test_what_accounts_and_limits_forbid_is_refused(sandbox):
    assert "Invalid account" in refused("--account=unknown")
    assert "Invalid account" in refused("--account=paid", "--uid=nobody")
    assert "Invalid job array" in refused("--array=0-64")
    assert "not available" in refused("--gpus-per-node=99")


def test_hopeless_jobs_are_taken_and_wait_for_ever(sandbox, shared_dir):
    unpaid = submit(sandbox, shared_dir, "#!/bin/bash\n", "--partition=paid")
    paid = submit(sandbox, shared_dir, "#!/bin/bash\n", "--partition=paid", "--account=paid")
    long = submit(sandbox, shared_dir, "#!/bin/bash\n", "--partition=debug", "--time=3")
    sandbox.wait_state(paid, "COMPLETED")
    assert "paid" in sandbox.sh("squeue", "-h", "-j", unpaid, "-o", "%r")
    assert sandbox.sh("squeue", "-h", "-j", long, "-o", "%r") == "PartitionTimeLimit"


def test_up_keeps_off_a_machine_with_another_slurm(sandbox, tmp_path):
    theirs = tmp_path / "slurm.conf"
    theirs.write_text("ClusterName=theirs\n")
    # in a mount namespace, so that nobody else sees the other configuration
    script = f"mount -t tmpfs none /etc/slurm; cp {theirs} /etc/slurm/; {SANDBOX} up; echo $?; cat /etc/slurm/*"
    done = subprocess.run(["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "1\nClusterName=theirs\n"
    assert "/etc/slurm/slurm.conf" in done.stderr and done.stderr.count("\n") == 1
    done = run_sandbox("up", env=os.environ | {"SLURM_CONF": str(theirs)})
    assert done.returncode == 1 and str(theirs) in done.stderr


# A machine of its own, as far as the sandbox is concerned: processes, network, /etc and /var/lib. bash is process 1,
# so that `kill -9 -1` is the end of everything else.
MACHINE = """
exec 2>&1
cp -a /etc "$1/etc"
rm -f "$1/etc/slurm/slurm.conf"
printf '127.0.0.1 localhost' > "$1/etc/hosts"
mount --bind "$1/etc" /etc
mount -t tmpfs -o mode=755 none /var/lib
look() {
  find /etc /var/lib -printf '%p %M %l\n' | sort
  find /etc -type f -exec sha256sum {} + | sort
  ip -o link
  ip route
  ps -eo comm
}
look > "$1/before"
"$2" up --nodes 2
kill -9 -1
"$2" status && exit 9
"$2" up --nodes 3 --gpus 0
sbatch --wait --output="$1/out" --nodes=3 --wrap='srun hostname'
"$2" down
look > "$1/after"
"""


def test_down_leaves_the_machine_as_it_was_even_after_a_massacre(sandbox, tmp_path):
    spaces = ["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    environment = {name: value for name, value in os.environ.items() if name != "REFBERT_SANDBOX_ROOT"}
    command = ["unshare", *spaces, "bash", "-euc", MACHINE, "bash", tmp_path, SANDBOX]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert sorted((tmp_path / "out").read_text().split()) == ["n1", "n2", "n3"]
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()
