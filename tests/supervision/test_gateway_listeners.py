"""`mesh up`, `mesh doctor` and restarts with gateways that do not listen on plain TCP."""

from __future__ import annotations

import stat

import pytest
from supervision_project import Project
from supervision_releases import free_port
from test_doctor_listeners import certificate

from mesh.config import load
from mesh.observe import front_door

SERVICE = '[services.greeting]\nclass = "svc:Greeting"\n'


@pytest.mark.parametrize("where", ["unix", "tls"])
def test_gateways_come_up_and_answer(project: Project, where: str):
    admin = free_port()
    if where == "unix":
        text = '[gateway]\nunix = "run/gateway.sock"\nunix_mode = "0600"\nadmin = "unix:run/admin.sock"\n'
    else:
        certificate(project.root, 60)
        text = (
            f'[gateway]\nport = {project.port}\nadmin = "127.0.0.1:{admin}"\n'
            '[gateway.tls]\ncertificate = "site.crt"\nkey = "site.key"\n'
        )
    (project.root / "mesh.toml").write_text(text + SERVICE)
    up = project.up()
    settings = load(project.root / "mesh.toml", {})
    public = front_door.public(settings, project.layout.listens)
    if where == "unix":
        path = project.root / "run/gateway.sock"
        assert (up.http, project.layout.unix) == (f"unix:{path}", str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    else:
        assert up.http == f"https://127.0.0.1:{project.port}"
    assert public.status("/readyz") == 200
    assert public.status("/hello/ujun") == 200
    assert public.status("/mesh") == 404
    door = front_door.admin(settings)
    assert door is not None
    assert (door.status("/mesh"), up.status) == (200, f"{door.url}/mesh")
    assert project.up().already
