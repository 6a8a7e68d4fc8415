<?php

if (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) !== '/') {
    http_response_code(404);
    header('Content-Type: text/plain; charset=utf-8');
    echo "Not found\n";
    return;
}

header('Content-Type: text/plain; charset=utf-8');
$release = getenv('LARDER_RELEASE') ?: 'unknown';
echo "Hello from PHP\nrelease {$release}\n";
