from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            name="Note",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("text", models.CharField(max_length=200)),
                ("author", models.CharField(max_length=50, default="anonymous")),
                ("upload", models.FileField(blank=True, upload_to="")),
            ],
        )
    ]
