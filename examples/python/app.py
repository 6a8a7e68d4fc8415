import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def home():
    release = os.environ.get("LARDER_RELEASE", "unknown")
    return f"Hello from Flask\nrelease {release}\n", 200, {"Content-Type": "text/plain; charset=utf-8"}
