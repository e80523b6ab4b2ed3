"""The page: its data against C MuJoCo, and in a browser where there is one."""

import base64
import json
import re
import shutil
import subprocess

import mujoco
import numpy as np
import pytest
from rendering.swing import drive, swing

from galvanax import rendering

SHAPES = """<mujoco><asset>
    <mesh name="tetra" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/>
    <hfield name="hills" nrow="3" ncol="4" size="2 1 .5 .1" elevation="0 0 0 0  0 1 1 0  0 0 2 0"/>
  </asset><worldbody>
    <geom name="hills" type="hfield" hfield="hills" pos="0 0 -1"/>
    <body name="rock" pos="0 0 1"><joint type="ball"/>
      <geom name="rock" type="mesh" mesh="tetra" pos=".1 .2 .3" quat=".6 .8 0 0"/></body>
  </worldbody></mujoco>"""


def read(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="motion">(.*?)</script>', text, re.S)[1])


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def turned(quat, vectors):
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat, np.float64))
    return np.atleast_2d(vectors) @ matrix.reshape(3, 3).T


@pytest.mark.parametrize("make", [swing, drive])
def test_geoms_are_where_mujoco_has_them(tmp_path, make):
    clip = make()
    rendering.write_player(tmp_path / "a.html", clip.model, clip.qpos, clip.time)
    page = read(tmp_path / "a.html")
    np.testing.assert_allclose(numbers(page["time"], "<f4"), clip.time, atol=1e-6)
    poses = numbers(page["poses"], "<f4").reshape(len(clip.qpos), len(page["bodies"]), 7)
    shown = [g for g in range(clip.model.ngeom) if clip.model.geom_group[g] < 3]
    assert [geom["name"] for geom in page["geoms"]] == [clip.model.geom(g).name for g in shown]
    data = mujoco.MjData(clip.model)
    for row, pose in enumerate(clip.qpos):
        data.qpos = pose
        mujoco.mj_forward(clip.model, data)
        for number, geom in zip(shown, page["geoms"], strict=True):
            corners = np.eye(3)
            place = turned(geom["quat"], corners) + geom["pos"]
            if geom["body"] >= 0:
                body = poses[row, geom["body"]].astype(float)
                place = turned(body[3:], place) + body[:3]
            true = corners @ data.geom_xmat[number].reshape(3, 3).T + data.geom_xpos[number]
            np.testing.assert_allclose(place, true, atol=2e-5 * max(1, np.abs(true).max()))


def test_sizes_colours_and_view(tmp_path):
    clip = drive()
    rendering.write_player(tmp_path / "a.html", clip.model, clip.qpos, clip.time)
    page = read(tmp_path / "a.html")
    geoms = {geom["name"]: geom for geom in page["geoms"]}
    assert "hidden" not in geoms  # of group 3
    assert geoms["hull"]["type"] == "box"
    assert geoms["hull"]["size"] == [0.3, 0.2, 0.1]
    assert geoms["hull"]["color"] == [1, 0, 0, 1]
    assert {geom["type"] for geom in page["geoms"]} == {"plane", "box", "ellipsoid", "capsule", "cylinder", "sphere"}
    assert geoms["stand"]["body"] == geoms["floor"]["body"] == -1
    assert page["bodies"][page["view"]["body"]] == "trunk"
    assert page["ground"] is None


def test_a_model_without_ground_gets_one_below_it(tmp_path):
    clip = swing()
    rendering.write_player(tmp_path / "a.html", clip.model, [[0, np.pi, 0]], [0.0])
    page = read(tmp_path / "a.html")
    assert page["ground"] == pytest.approx(1.2 - 2 - 0.03, abs=1e-3)
    assert page["view"]["body"] == -1


def test_meshes_and_height_fields(tmp_path):
    model = mujoco.MjModel.from_xml_string(SHAPES)
    rendering.write_player(tmp_path / "a.html", model, model.qpos0[None], [0.0])
    page = read(tmp_path / "a.html")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    geoms = {geom["name"]: geom for geom in page["geoms"]}

    def points(name, world):
        mesh = page["meshes"][geoms[name]["mesh"]]
        low, high = np.array(mesh["low"]), np.array(mesh["high"])
        local = low + (high - low) * numbers(mesh["points"], "<u2").reshape(-1, 3) / 65535
        faces = numbers(mesh["faces"], "<u4").reshape(-1, 3)
        matrix, place = data.geom_xmat[world].reshape(3, 3), data.geom_xpos[world]
        return local @ matrix.T + place, faces, mesh

    rock, faces, mesh = points("rock", 1)
    # Where the body's frame puts the file's own corners.
    true = turned([0.6, 0.8, 0, 0], np.vstack([np.zeros(3), np.eye(3)])) + np.array([0.1, 0.2, 1.3])
    for corner in true:
        assert np.linalg.norm(rock - corner, axis=1).min() < 1e-4
    assert len(faces) == 4
    triangles = rock[faces]
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    assert (np.einsum("fi,fi->f", normals, triangles.mean(1) - true.mean(0)) > 0).all()  # outwards
    assert len(numbers(mesh["normals"], "i1")) == rock.size

    hills, faces, _ = points("hills", 0)
    assert len(faces) == 2 * 2 * 3
    assert hills[:, 2].max() > hills[:, 2].min() + 0.4
    down, hit = np.array([0.0, 0, -1]), np.zeros(1, np.int32)
    for x, y, z in hills:
        start = np.array([x * 0.999, y * 0.999, 5.0])  # a ray that starts above the edge itself may miss it
        assert 5 - mujoco.mj_ray(model, data, start, down, None, 1, 1, hit) == pytest.approx(z, abs=2e-3)


def test_a_page_needs_no_network_and_quotes_its_title(tmp_path):
    clip = swing()
    title = 'cart & "pole"</title></script><script>document.body.dataset.broken=1</script>{{motion}}'
    rendering.write_player(tmp_path / "a.html", clip.model, clip.qpos, clip.time, title=title)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert read(tmp_path / "a.html")["title"] == title
    code = re.sub(r'id="motion">.*?</script>', "", text, flags=re.S)
    assert not re.search(r"https?:|\b(src|href)=|@import|url\(|fetch|XMLHttp|import\(|WebSocket", code)
    assert "default-src 'none'" in text
    assert text.count("</script>") == 2
    assert len(text) < 60_000


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--virtual-time-budget=2000",
    "--window-size=500,400",
]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH: the page is not run")
@pytest.mark.parametrize("renderer", ["webgl", "canvas"])
def test_in_a_browser(tmp_path, renderer):
    clip = drive()
    title = "</script><script>document.body.dataset.broken=1</script>"
    rendering.write_player(tmp_path / "a.html", clip.model, clip.qpos, clip.time, title=title)
    address = (tmp_path / "a.html").as_uri() + f"#play=0&frame=2&renderer={renderer}"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body, done.stderr[-2000:]
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', body[0]))
    assert found["ready"] == "1"
    assert found["steps"] == "5"
    assert found["geoms"] == "6"
    assert "broken" not in found
    assert found["renderer"] in (renderer, "canvas")  # some browsers have no WebGL
    assert float(found["covered"]) > 0.03
    assert "0.20 / 0.40 s" in done.stdout
