from django.conf import settings
from django.core.cache import cache
from django.core.files.storage import default_storage
from django.http import FileResponse, Http404, HttpResponse
from django.shortcuts import redirect, render

from .models import Note


def notes(request):
    if request.method == "POST":
        author = request.POST.get("author") or "anonymous"
        Note.objects.create(text=request.POST["text"][:200], author=author[:50], upload=request.FILES.get("upload", ""))
        return redirect("/")
    visits = None
    if settings.REDIS_URL:
        cache.add("visits", 0)
        visits = cache.incr("visits")
    return render(request, "notes/list.html", {"notes": Note.objects.order_by("id"), "visits": visits})


def upload(request, name):
    if not Note.objects.filter(upload=name).exists():
        raise Http404
    # The browser saves the file and does not show it, because anyone can upload a page with a script.
    return FileResponse(default_storage.open(name), as_attachment=True)


def health(request):
    return HttpResponse(f"{Note.objects.count()} notes")
