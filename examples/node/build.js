// Stands for the build of a real project: the server reads the result.
const fs = require('node:fs');

fs.mkdirSync('build', { recursive: true });
fs.writeFileSync('build/greeting.json', JSON.stringify({ greeting: 'Hello from Node' }) + '\n');
console.log('build/greeting.json written');
