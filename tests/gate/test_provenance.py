import subprocess

from turbo_vaed.gate.provenance import git_revision


def test_an_edit_of_code_makes_a_revision_dirty_and_what_a_run_writes_does_not(tmp_path):
    """A customer's lock is committed, and every run changes it."""
    lock, code = tmp_path / "customers/acme/dvc.lock", tmp_path / "code.py"
    lock.parent.mkdir(parents=True)
    assert git_revision(tmp_path) == "unknown"
    for path in (lock, code):
        path.write_text("a\n")
    name = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    lock.write_text("b\n")
    assert git_revision(tmp_path) == clean
    code.write_text("b\n")
    assert git_revision(tmp_path) == f"{clean}-dirty"
