import os
from pathlib import Path

import dj_database_url
import pymysql

# Django accepts PyMySQL, which needs no compiler, under the name and a version of mysqlclient.
pymysql.version_info = (2, 2, 1, "final", 0)
pymysql.install_as_MySQLdb()

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = os.environ.get("SECRET_KEY", "only for a developer's machine")
# larder forwards requests for the hosts of this project only.
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "site_settings.urls"
INSTALLED_APPS = ["notes"]
MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

# Without DATABASE_URL, the database is a file beside the code, which is a path of `data:` in larder.yml.
DATABASES = {"default": dj_database_url.config(default="sqlite:///" + str(BASE_DIR / "app.sqlite3"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = os.environ.get("REDIS_URL")
if REDIS_URL:
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL, "TIMEOUT": None}}

MEDIA_ROOT = BASE_DIR / "media"
USE_TZ = True
