<?php
// Routes requests in PHP's own server like a web server in front of PHP: serves public files, hides private files, and passes all other
// requests to the front controller. The compile script copies this file to .larder-router.php of the application.

// Returns false for a file that the server sends itself, null if there is nothing to serve, or the script and the rest of the path.
function larder_route(string $root, string $path)
{
    $parts = array_values(array_filter(explode('/', $path), static fn ($part) => $part !== ''));
    foreach ($parts as $at => $part) {
        // This includes "." and "..", so that a path never leaves the root.
        if ($part[0] === '.' && !($at === 0 && $part === '.well-known')) {
            return null;
        }
    }
    // Private files of the project, if the root of the project is served.
    $own = ['vendor', 'Procfile', 'app.json', 'auth.json', 'larder.yml'];
    $first = $parts[0] ?? '';
    if ($root === __DIR__ && (in_array($first, $own, true) || strncmp($first, 'composer.', 9) === 0)) {
        return null;
    }
    $file = implode('/', array_merge([$root], $parts));
    if (strpos($path, "\0") !== false) {
        return null;
    }
    if (is_file($file) || (is_dir($file) && (is_file("$file/index.php") || is_file("$file/index.html")))) {
        return false;
    }
    // A script with a path behind it, or the front controller of the nearest directory that has one.
    for ($rest = ''; ; $rest = '/' . array_pop($parts) . $rest) {
        $here = implode('/', array_merge([''], $parts));
        foreach ([$here, "$here/index.php"] as $script) {
            if (substr($script, -4) === '.php' && is_file($root . $script)) {
                return [$script, $rest];
            }
        }
        if ($parts === []) {
            return null;
        }
    }
}

// Sets $_SERVER and the working directory as other web servers do, and returns the script's path.
function larder_enter(string $root, string $script, string $rest): string
{
    $_SERVER['SCRIPT_NAME'] = $script;
    $_SERVER['SCRIPT_FILENAME'] = $root . $script;
    $_SERVER['PHP_SELF'] = $script . $rest;
    unset($_SERVER['PATH_INFO'], $_SERVER['LARDER_ROUTE']);
    if ($rest !== '') {
        $_SERVER['PATH_INFO'] = $rest;
    }
    chdir(dirname($root . $script));
    return $root . $script;
}

$_SERVER['LARDER_ROUTE'] = larder_route(
    rtrim((string) realpath($_SERVER['DOCUMENT_ROOT']), '/'),
    rawurldecode(explode('?', $_SERVER['REQUEST_URI'], 2)[0])
);
if ($_SERVER['LARDER_ROUTE'] === false) {
    unset($_SERVER['LARDER_ROUTE']);
    return false;
}
if ($_SERVER['LARDER_ROUTE'] === null) {
    http_response_code(404);
    header('Content-Type: text/plain; charset=utf-8');
    echo "Not found\n";
    return true;
}
// At the top level, because scripts expect their variables to be global. The router defines no variable of its own.
require larder_enter(rtrim((string) realpath($_SERVER['DOCUMENT_ROOT']), '/'), ...$_SERVER['LARDER_ROUTE']);
return true;
