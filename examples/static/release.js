fetch('/', { method: 'HEAD' }).then((answer) => {
  document.getElementById('release').textContent = answer.headers.get('Larder-Release') || 'unknown';
});
