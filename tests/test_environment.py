"""environment: a commit is named where git knows the code, not that of whatever lies around it."""

import subprocess

from qs import environment


def test_code_that_a_repository_does_not_hold_has_no_commit(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    code = tmp_path / "environment.py"
    code.touch()
    monkeypatch.setattr(environment, "__file__", str(code))
    assert environment.commit() is None
    git("add", code.name)
    assert environment.commit() == git("rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert environment.commit() is None
    (tmp_path / "git").touch()  # and may not run
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.commit() is None
