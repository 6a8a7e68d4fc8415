from django.urls import path

from notes import views

urlpatterns = [path("", views.notes), path("media/<path:name>", views.upload), path("health", views.health)]
