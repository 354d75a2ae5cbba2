"""Answer HTTP with a file of `fastmask export`, without torch and fastmask: python examples/serve.py MODEL.onnx

pip install litserve onnxruntime pillow opencv-python-headless
curl -F photo=@one.jpg http://localhost:8000/predict

The answer is JSON: {"mask": {"wear": 0.98, ...}, ..., "predicted": 3}. Photos that arrive together are predicted in one
batch. A request of more than --most megabytes is refused (413), a file that is not a photo too (422).
"""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse


def load_script(model: Path) -> ModuleType:
    """The script that `fastmask export` writes next to a model, as a module."""
    spec = importlib.util.spec_from_file_location("predict_onnx", model.with_name("predict_onnx.py"))
    if spec is None or spec.loader is None:
        raise SystemExit(f"{model.with_name('predict_onnx.py')} cannot be read; expected what fastmask export wrote.")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class Answers(litserve.LitAPI):
    """Photos of requests -> probabilities by head and class, in batches.

    LitServe answers all requests of a batch with an exception of one, so what is wrong with a photo is a text in its
    place.
    """

    def __init__(self, model: Path, threads: int, **batching: Any) -> None:
        super().__init__(**batching)
        self.model, self.threads = model, threads

    def setup(self, device: str) -> None:
        self.script = load_script(self.model)
        self.session = self.script.open_model(self.model, self.threads)
        self.meta = self.script.read_meta(self.session, self.model)

    # LitServe takes the kind of a request from this annotation
    def decode_request(self, request: Request) -> np.ndarray | str:
        """(height, width, 3) uint8, prepared for the network, or what is wrong."""
        try:
            photo = self.script.decode(request["photo"].file.read())
            return np.asarray(self.script.prepare_photo(photo, self.meta, Path("photo")))
        except (AttributeError, KeyError):
            return "Found no field photo; expected a form with a file of that name."
        except self.script.BadPhotoError as error:
            return str(error)
        except self.script.PhotoError as error:
            return f"The photo {error}."
        except Exception as error:  # noqa: BLE001 - Pillow raises undocumented exceptions for forged files
            return f"The photo cannot be read ({error})."

    def batch(self, inputs: list[np.ndarray | str]) -> list[np.ndarray | str]:
        return inputs

    def predict(self, x: list[np.ndarray | str]) -> list[dict[str, Any] | str]:
        photos = [photo for photo in x if not isinstance(photo, str)]
        found = iter(self.answers(np.stack(photos)) if photos else [])
        return [one if isinstance(one, str) else next(found) for one in x]

    def answers(self, photos: np.ndarray) -> list[dict[str, Any]]:
        """(B, height, width, 3) uint8 -> the answer to each."""
        probabilities = self.script.run_model(self.session, self.meta, photos)
        header, *rows = self.script.to_rows(self.meta, [""] * len(photos), probabilities)
        places = {name: place for place, name in enumerate(header)}
        return [
            {
                **{
                    head["name"]: {one: float(row[places[f"{head['name']}.{one}"]]) for one in head["classes"]}
                    for head in self.meta["heads"]
                },
                "predicted": int(row[places["predicted"]]),
            }
            for row in rows
        ]

    def unbatch(self, output: list[dict[str, Any] | str]) -> list[dict[str, Any] | str]:
        return output

    def encode_response(self, output: dict[str, Any] | str) -> Any:
        return JSONResponse({"detail": output}, 422) if isinstance(output, str) else output


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer HTTP with a file of fastmask export.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16, help="photos of a batch, at most: 2 or more")
    parser.add_argument("--wait", type=float, default=0.01, help="seconds that a batch waits for more photos")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime (default: its own choice)")
    parser.add_argument("--most", type=float, default=20, help="megabytes of a request")
    given = parser.parse_args()
    if given.batch < 2:
        parser.error("--batch takes 2 or more: with 1 LitServe makes no batches.")
    api = Answers(given.model, given.threads, max_batch_size=given.batch, batch_timeout=given.wait)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, max_payload_size=int(given.most * 2**20))
    server.run(host=given.host, port=given.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
